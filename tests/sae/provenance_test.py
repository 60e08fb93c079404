"""Wherever a dictionary meets a model, it is used at the site and with the model of its files, or refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sites
from mechjax.circuits import Replacement
from mechjax.circuits.cross_layer import CrossLayerReplacement
from mechjax.errors import SAEError
from mechjax.sae import (
  CrossLayerTopK,
  Evaluation,
  Metadata,
  ReLU,
  Truncated,
  features,
  hooks,
  layers_of,
  model_names,
)
from mechjax.sae.provenance import check_provenance
from mechjax.steering import Clamp, latents
from tests.sae import plain
from tests.sae.plain import SAES, D, M

SOURCE = Metadata(model_name='google/gemma-2-2b', hook_name='blocks.3.hook_resid_post')
STATED = dataclasses.replace(SAES['relu'], provenance=SOURCE)
PARAMS = plain.scattered(SAES['relu'], np.random.default_rng(0))


@pytest.mark.parametrize(
  ('hook', 'expected'),
  [
    ('resid_pre.3', {'resid_post.2'}),
    ('blocks.0.hook_resid_pre', {'resid_pre.0'}),
    ('resid_post_layer_3', {'resid_post.3'}),
    ('attention_out_layer_3', {'attn_out.3'}),
    ('model.layers.3.output', {'resid_post.3'}),
    ('model.layers.3.input', {'resid_post.2'}),
    ('transformer.h.3', {'resid_post.2', 'resid_post.3'}),
    ('gpt_neox.layers.3.mlp', {'mlp_norm.3', 'mlp_raw.3', 'mlp_out.3'}),
    ('model.layers.3.mlp.output', {'mlp_raw.3', 'mlp_out.3'}),
    ('model.layers.3.self_attn.o_proj.input', {'z.3'}),
    ('model.layers.3.pre_feedforward_layernorm.output', {'mlp_norm.3'}),
    ('model.layers.3.post_feedforward_layernorm.output', {'mlp_out.3'}),
    ('model.layers.3.post_attention_layernorm.output', {'mlp_norm.3', 'attn_out.3'}),
    ('model.embed_tokens', {'embed'}),
    ('model.layers.3.new_module', set()),
    ('blocks.3.hook_mlp_in', set()),
  ],
)
def test_a_hook_means_one_of_some_sites_in_any_notation(hook, expected):
  assert {*map(str, hooks.possible_sites(hook))} == expected
  for one in expected:
    assert not hooks.is_other_site(sites.parse(one), hook)
  if expected:
    assert hooks.is_other_site(sites.parse('mlp_pre.3'), hook)


@pytest.mark.parametrize(
  ('given', 'stated', 'expected'),
  [
    ('gemma-2-2b', 'google/gemma-2-2b', 'same'),
    ('gemma3-270m', 'google/gemma-3-270m', 'same'),
    ('openai-community/gpt2', 'gpt2-small', 'same'),
    ('meta-llama/Meta-Llama-3.1-8B@main', 'Llama-3.1-8B', 'same'),
    ('google/gemma-2-2b-it', 'gemma-2-2b', 'variant'),
    ('pythia-160m', 'EleutherAI/pythia-160m-deduped', 'variant'),
    ('opt-1.3b', 'facebook/opt-13b', 'other'),
    ('opt-1.3b', 'facebook/opt-1.3b', 'same'),
    ('gemma-2-9b', 'gemma-2-2b', 'other'),
    ('gpt2-xl', 'gpt2', 'other'),
    ('gpt2-medium', 'gpt2-small', 'other'),
    ('weights/model.gguf', 'gpt2', 'unknown'),
    ('.', 'gpt2', 'unknown'),
    ('/', 'gpt2', 'unknown'),
  ],
)
def test_names_of_models_have_several_spellings(given, stated, expected):
  assert model_names.compare(given, stated) == expected
  assert model_names.compare(stated, given) == expected


def test_differences_that_are_no_errors_are_notes():
  source = dataclasses.replace(
    SOURCE, prepend_bos=True, context_size=128, activation_dtype='bfloat16'
  )
  here = {'prepend_bos': True, 'context_size': 64, 'activation_dtype': 'bfloat16'}
  assert source.check('resid_post.3', model='gemma-2-2b', **here) == ()
  other = {'prepend_bos': False, 'context_size': 1024, 'activation_dtype': 'float32'}
  notes = source.check('resid_post.3', model='gemma-2-2b-it', **other)
  for note, words in zip(notes, ('-it', 'without', '128 .*1024', 'bfloat16.*float32'), strict=True):
    assert words.split('.*')[0].strip() in note
  assert Metadata().check('resid_post.3', model='gpt2', **other) == ()  # unknown is no difference


def test_an_evaluation_refuses_another_site_and_another_model():
  def forward(params, tokens):
    raise AssertionError

  Evaluation(forward, {'resid_post.3': STATED}, model='gemma-2-2b')
  Evaluation(forward, {'resid_pre.4': STATED})
  with pytest.raises(SAEError, match=r'site resid_post.4, and .* trained on blocks.3.hook'):
    Evaluation(forward, {'resid_post.4': STATED})
  with pytest.raises(SAEError, match=r'site resid_post\.4'):
    Evaluation(forward, {'resid_post.4': Truncated(STATED, 2)})  # a wrapper has its provenance
  with pytest.raises(SAEError, match="model 'gpt2'"):
    Evaluation(forward, {'resid_post.3': STATED}, model='gpt2')
  Evaluation(forward, {'resid_post.4': dataclasses.replace(STATED, provenance=None)}, model='gpt2')


def test_a_cross_layer_transcoder_is_checked_at_every_layer():
  def forward(params, tokens):
    raise AssertionError

  source = Metadata(hook_name='mlp_norm.0,mlp_norm.1', hook_name_out='mlp_out.0, mlp_out.1')
  clt = CrossLayerTopK(n_layers=2, d_in=D, d_out=D, width=M, k=2, provenance=source)
  targets = {'mlp_norm.0': 'mlp_out.0', 'mlp_norm.1': 'mlp_out.1'}
  Evaluation(forward, layers_of(clt, [*targets]), targets)
  with pytest.raises(SAEError, match=r'site mlp_norm.1, and .* trained on mlp_norm.0'):
    Evaluation(forward, layers_of(clt, [*targets][::-1]), targets)
  with pytest.raises(SAEError, match=r'target mlp_raw\.1'):
    Evaluation(forward, layers_of(clt, [*targets]), targets | {'mlp_norm.1': 'mlp_raw.1'})
  CrossLayerReplacement(clt, {})
  three = dataclasses.replace(clt, n_layers=3)
  with pytest.raises(SAEError, match='3 sites, and the dictionary was trained on 2'):
    CrossLayerReplacement(three, {})


def test_steering_circuits_and_features_refuse_another_site():
  Clamp('resid_post.3', STATED, PARAMS, latent=0, value=1.0)
  Clamp('resid_post', STATED, PARAMS, layer=3, latent=0, value=1.0)
  Clamp('resid_post.*', STATED, PARAMS, latent=0, value=1.0)  # a pattern is not one site
  for wrong in ({'site': 'resid_post.2'}, {'site': 'resid_post', 'layer': 2}):
    with pytest.raises(SAEError, match=r'site resid_post.2'):
      Clamp(sae=STATED, params=PARAMS, latent=0, value=1.0, **wrong)
  x = np.ones((2, D), np.float32)
  for call in (
    lambda site: latents.of_latents(STATED, PARAMS, x, range(M), site=site),
    lambda site: latents.reconstruction_difference(STATED, PARAMS, x, -x, site=site),
    lambda site: latents.select_pairs(STATED, PARAMS, x, -x, site=site),
  ):
    np.testing.assert_array_equal(call(None), call('resid_post.3'))
    with pytest.raises(SAEError, match=r'site mlp_out\.3'):
      call('mlp_out.3')
  with pytest.raises(SAEError, match=r'site mlp_out\.3'):
    features.collect(lambda tokens: x, STATED, PARAMS, [], site='mlp_out.3')
  source = Metadata(hook_name='mlp_norm.0', hook_name_out='mlp_out.0')
  transcoder = ReLU(d_in=D, width=M, d_out=D, sparsity=0.0, provenance=source)
  Replacement({'mlp_norm.0': (transcoder, {})})
  with pytest.raises(SAEError, match=r'site mlp_norm\.1'):
    Replacement({'mlp_norm.1': (transcoder, {})})
  with pytest.raises(SAEError, match=r'target mlp_raw\.0'):
    Replacement({'mlp_norm.0': (transcoder, {})}, {'mlp_norm.0': 'mlp_raw.0'})


def test_provenance_changes_neither_equality_nor_a_compiled_function():
  plain_ = SAES['relu']
  assert plain_ == STATED
  assert hash(STATED) == hash(plain_)
  assert 'provenance' not in repr(STATED)
  assert check_provenance(plain_, 'resid_post.9') == ()
  assert dataclasses.replace(STATED, sparsity=1.0).provenance == SOURCE
  np.testing.assert_array_equal(
    STATED.encode(PARAMS, jnp.ones((1, D))), plain_.encode(PARAMS, jnp.ones((1, D)))
  )
