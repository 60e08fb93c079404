"""The model, the site and the texts of a dictionary, as each format states them."""

import json

import jax
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae import Metadata, read_metadata
from mechjax.sae.formats import load, save
from tests.sae.formats.cases import rewritten, single
from tests.sae.formats.torch_files import as_learned, learned
from tests.sae.plain import SAES


def test_what_the_files_say_of_a_dictionary_comes_with_it(tmp_path):
  params, _ = single(SAES['relu'])
  about = {
    'model_name': 'gpt2',
    'hook_name': 'blocks.5.hook_resid_pre',
    'prepend_bos': True,
    'context_size': 128,
    'dataset_path': 'some/texts',
  }
  save(tmp_path, SAES['relu'], params, format='sae_lens', about={**about, 'seqpos_slice': [None]})
  sae, _ = load(tmp_path)
  loaded = load(tmp_path)
  assert loaded.sae == sae
  assert loaded.metadata == read_metadata(tmp_path)
  assert {name: getattr(loaded.metadata, name) for name in about} == about
  assert loaded.metadata.config['metadata']['seqpos_slice'] == [None]
  assert loaded.metadata.normalize_activations == 'none'
  doubled = jax.tree.map(lambda v: 2 * v, loaded.params)  # a dict of arrays as before
  np.testing.assert_array_equal(doubled['W_enc'], 2 * params['W_enc'])


def test_every_format_has_its_own_words_for_where_a_dictionary_is_from(tmp_path):
  jumprelu, relu = SAES['jumprelu'], SAES['relu']
  save(tmp_path / 'npz', jumprelu, single(jumprelu)[0], format='gemma_scope')
  assert load(tmp_path / 'npz').metadata == Metadata()
  ends = {'hf_hook_point_in': 'model.layers.3.in', 'hf_hook_point_out': 'model.layers.3.out'}
  about = {'model_name': 'gemma', **ends}
  save(tmp_path / 'two', jumprelu, single(jumprelu)[0], format='gemma_scope_2', about=about)
  said = load(tmp_path / 'two').metadata
  assert (said.model_name, said.hook_name, said.hook_name_out) == ('gemma', *ends.values())
  learned(tmp_path / 'learned', *as_learned('relu', single(relu)[0])[:2])
  words = {'dict_class': 'AutoEncoder', 'lm_name': 'pythia', 'submodule_name': 'resid_post_layer_3'}
  config = {'trainer': words, 'buffer': {'ctx_len': 64}}
  (tmp_path / 'learned' / 'config.json').write_text(json.dumps(config))
  said = load(tmp_path / 'learned').metadata
  assert (said.model_name, said.hook_name) == ('pythia', 'resid_post_layer_3')
  assert (said.context_size, said.prepend_bos, said.config) == (64, None, config)
  save(tmp_path / 'old', relu, single(relu)[0], format='sae_lens')
  older = {'hook_point': 'blocks.1.hook_mlp_out', 'normalize_activations': False}
  rewritten(tmp_path / 'old' / 'cfg.json', **older)
  said = load(tmp_path / 'old').metadata
  assert (said.hook_name, said.normalize_activations) == ('blocks.1.hook_mlp_out', 'none')


def check(site, target=None, model=None, **stated):
  Metadata(**stated).check(site, target, model=model, where='out/sae')


@pytest.mark.parametrize('hook', ['resid_post.1', 'blocks.1.hook_resid_post', 'resid_pre.2'])
def test_a_dictionary_is_used_at_the_site_that_its_files_name_and_at_no_other(hook):
  for same in ('resid_post.1', 'blocks.1.hook_resid_post', 'resid_pre.2'):
    check(same, hook_name=hook)
  for other in (
    'resid_post.9',
    'resid_pre.1',
    'mlp_out.1',
    'blocks.0.hook_resid_post',
    'final_norm',
  ):
    with pytest.raises(SAEError, match=f'site {other}, and the dictionary was trained on {hook}'):
      check(other, hook_name=hook)
  with pytest.raises(SAEError, match=r'where: out/sae[^-]*--target=mlp_out.1') as raised:
    check('mlp_norm.1', 'mlp_out.2', hook_name='mlp_norm.1', hook_name_out='mlp_out.1')
  assert 'target mlp_out.2' in raised.value.what


@pytest.mark.parametrize(
  'hook',
  [None, 'resid_post', 'resid_post_layer_9', 'model.layers.9', 'h.3.new', 'blocks.3.hook_mlp_in'],
)
def test_a_hook_that_is_not_certainly_another_site_is_accepted(hook):
  check('resid_post.9', hook_name=hook)


def test_a_dictionary_is_not_used_with_a_model_that_is_certainly_another(tmp_path):
  for given, stated in (
    ('openai-community/gpt2', 'gpt2-small'),
    ('gemma3-270m', 'google/gemma-3-270m'),
    (f'{tmp_path}', 'gpt2'),
    ('weights/model.gguf', 'gpt2'),
    ('gpt2', None),
  ):
    check('resid_post.9', model=given, model_name=stated)
  for given, stated in (('smollm2-135m', 'gpt2'), ('google/gemma-2-2b', 'gemma-2-9b')):
    with pytest.raises(SAEError, match=f"model '{given}', and .* trained on '{stated}'"):
      check('resid_post.9', model=given, model_name=stated)


def test_the_model_and_sites_in_earlier_files_of_this_library_are_read(tmp_path):
  about = {'mechjax': {'model': 'gpt2', 'reads': 'resid_post.1', 'writes': None}}
  save(tmp_path, SAES['relu'], single(SAES['relu'])[0], format='sae_lens', about=about)
  said = read_metadata(tmp_path)
  assert (said.model_name, said.hook_name, said.hook_name_out) == ('gpt2', 'resid_post.1', None)
