"""A dictionary that is saved and loaded is the same function, and nothing else is written."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.sae import SAEError, TopK
from mechjax.sae.formats import load, save
from tests.sae.formats.cases import ALL, each_format, outputs, same, single
from tests.sae.plain import SAES, D, M


def expressible(format, sae):
  if format == 'sae_lens':
    return not (isinstance(sae, TopK) and sae.d_out)
  return not isinstance(sae, TopK) and (format == 'gemma_scope_2' or not sae.skip)


@each_format
@pytest.mark.parametrize('name', ALL)
def test_what_a_format_can_express_comes_back_as_the_same_function(name, format, tmp_path):
  sae = ALL[name]
  params, x = single(sae)
  if not expressible(format, sae):
    with pytest.raises(SAEError, match=r'TopK|skip'):
      save(tmp_path / 'out', sae, params, format=format)
    assert not [*tmp_path.iterdir()]
    return
  save(tmp_path / 'out', sae, params, format=format)
  back, found = load(tmp_path / 'out')
  same(outputs(back, found, x), outputs(sae, params, x))
  assert (back.d_in, back.width, back.d_out, back.skip) == (D, M, sae.d_out, sae.skip)
  assert all(value.dtype == jnp.float32 for value in found.values())


@pytest.mark.parametrize('name', ['relu', 'gated', 'jumprelu', 'topk'])
def test_sae_lens_keeps_the_architecture_and_all_but_thresholds_to_the_last_bit(name, tmp_path):
  sae = SAES[name]
  params, _ = single(sae)
  save(tmp_path / 'out', sae, params, format='sae_lens')
  back, found = load(tmp_path / 'out')
  assert type(back) is type(sae)
  assert getattr(back, 'k', None) == getattr(sae, 'k', None)
  for key, value in params.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-6 if key == 'log_threshold' else 0)


@each_format
def test_what_could_not_be_loaded_is_not_written(format, tmp_path):
  sae = SAES['jumprelu']
  params = single(sae)[0]
  wide = dataclasses.replace(sae, width=M + 1)
  fewer = {name: value for name, value in params.items() if name != 'b_enc'}
  for one, wrong in [
    (wide, params),
    (sae, fewer),
    (sae, params | {'more': params['b_enc']}),
    (sae, params | {'b_enc': np.full(M, np.nan, np.float32)}),
    (sae, params | {'W_dec': np.full((M, D), 1e300)}),
    (sae, params | {'log_threshold': np.full(M, np.nan, np.float32)}),
  ]:
    with pytest.raises(SAEError, match=r'parameters|NaN or infinity'):
      save(tmp_path / 'out', one, wrong, format=format)
  assert not [*tmp_path.iterdir()]


@each_format
def test_nothing_is_overwritten_and_nothing_half_written_is_left(format, tmp_path, monkeypatch):
  sae = SAES['relu']
  params, _ = single(sae)
  save(tmp_path / 'out', sae, params, format=format)
  before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
  with pytest.raises(WeightsError, match='exists already'):
    save(tmp_path / 'out', sae, params, format=format)
  assert before == {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}

  def full(*_, **__):
    raise OSError('no space left on device')

  monkeypatch.setattr(np, 'savez', full)
  monkeypatch.setattr('mechjax.sae.formats.gemma_scope.save_safetensors', full)
  monkeypatch.setattr('mechjax.sae.formats.saelens.save_safetensors', full)
  with pytest.raises(OSError, match='no space'):
    save(tmp_path / 'new', sae, params, format=format)
  assert [path.name for path in tmp_path.iterdir()] == ['out']
