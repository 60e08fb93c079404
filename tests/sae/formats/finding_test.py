"""A dictionary is found in a folder or on a hub, or the error names the files that were looked for."""

import huggingface_hub
import jax.numpy as jnp
import pytest

from mechjax.errors import FetchError, WeightsError
from mechjax.sae import JumpReLU, SAEError
from mechjax.sae.formats import load, save
from tests.sae.formats.cases import published, single
from tests.sae.plain import SAES


def test_a_place_with_a_name_that_no_file_has_is_not_there():
  with pytest.raises(WeightsError, match='neither an existing path nor the name'):
    load('a' * 300 + '!')


def test_the_error_for_a_place_without_a_dictionary_names_the_files_sought_and_found(tmp_path):
  (tmp_path / 'readme.md').write_text('')
  with pytest.raises(WeightsError, match=r'(?s)params\.npz.*readme\.md'):
    load(tmp_path)
  with pytest.raises(WeightsError, match='no format'):
    load(tmp_path / 'readme.md')
  with pytest.raises(WeightsError, match='neither an existing path nor'):
    load(tmp_path / 'nowhere')
  params, _ = single(SAES['relu'])
  for format in ('gemma_scope', 'sae_lens'):
    save(tmp_path / format, SAES['relu'], params, format=format)
  (tmp_path / 'gemma_scope' / 'params.npz').rename(tmp_path / 'sae_lens' / 'params.npz')
  with pytest.raises(WeightsError, match='holds'):
    load(tmp_path / 'sae_lens')
  with pytest.raises(SAEError, match='pickles'):
    save(tmp_path / 'x', SAES['relu'], params, format='dictionary_learning')
  with pytest.raises(SAEError, match="did you mean 'sae_lens'"):
    save(tmp_path / 'x', SAES['relu'], params, format='saelens')
  with pytest.raises(SAEError, match='no place'):
    save(tmp_path / 'x', SAES['relu'], params, format='gemma_scope', about={'a': 1})
  with pytest.raises(SAEError, match='JSON'):
    save(tmp_path / 'x', SAES['relu'], params, format='sae_lens', about={'a': jnp.ones(2)})


def test_of_a_hub_only_one_folder_is_fetched(tmp_path, monkeypatch):
  asked = []

  def snapshot_download(name, allow_patterns):
    asked.append((name, allow_patterns))
    return tmp_path

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  folder = tmp_path / 'layer_20' / 'width_16k' / 'average_l0_71'
  published(folder, 'gemma_scope')
  sae, _ = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
  assert isinstance(sae, JumpReLU)
  ((name, patterns),) = asked
  assert name == 'google/gemma-scope-2b-pt-res'
  assert 'layer_20/width_16k/average_l0_71/params.npz' in patterns
  elsewhere = [p for p in patterns if not p.startswith('layer_20/width_16k/average_l0_71/')]
  assert elsewhere == ['layer_20/width_16k/config.json']  # settings of a training, if there are any
  with pytest.raises(FetchError, match='no folder'):
    load('google/gemma-scope-2b-pt-res/layer_21')
  with pytest.raises(WeightsError, match='neither an existing path nor'):
    load('google/gemma-scope/../..')

  def unreachable(*_, **__):
    raise RuntimeError('no network')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(FetchError, match='no network'):
    load('google/gemma-scope-2b-pt-res/layer_20')
