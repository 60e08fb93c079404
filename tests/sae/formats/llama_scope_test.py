"""Files of Llama Scope, made by hand from arrays: the norms of the activations are folded, and nothing else changes."""

import json

import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.sae import JumpReLU, ReLU, SAEError, TopK
from mechjax.sae.formats import load, read_metadata, save
from mechjax.weights.safetensors_writing import save as save_safetensors
from tests.sae.formats.cases import rewritten, same, single
from tests.sae.plain import SAES, D, M

THRESHOLD, NORMS = 0.9, {'in': 7.5, 'out': 3.25}
HOOK = 'blocks.15.hook_resid_post'
CONFIG = {
  'd_model': D,
  'd_sae': M,
  'hook_point_in': HOOK,
  'hook_point_out': HOOK,
  'act_fn': 'jumprelu',
  'jump_relu_threshold': THRESHOLD,
  'norm_activation': 'dataset-wise',
  'dataset_average_activation_norm': {'in': 7.5, 'out': 7.5},
  'sparsity_include_decoder_norm': True,
  'use_decoder_bias': True,
  'use_glu_encoder': False,
  'apply_decoder_bias_to_pre_encoder': False,
  'top_k': 4,
}


def publish(home, unit_rows=True, **config):
  """A directory of Llama Scope with random arrays; returns it and the arrays."""
  r = np.random.default_rng(3)
  W_dec = r.normal(size=(D, M))
  W_dec /= np.linalg.norm(W_dec, axis=0) if unit_rows else 1
  arrays = {
    'encoder.weight': 0.3 * r.normal(size=(M, D)),
    'encoder.bias': 0.3 * r.normal(size=M),
    'decoder.weight': W_dec,
    'decoder.bias': r.normal(size=D),
  }
  arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
  (home / 'L15R' / 'checkpoints').mkdir(parents=True)
  save_safetensors(home / 'L15R' / 'checkpoints' / 'final.safetensors', arrays)
  (home / 'L15R' / 'hyperparams.json').write_text(json.dumps(CONFIG | config))
  (home / 'L15R' / 'lm_config.json').write_text('{"model_name": "meta-llama/Llama-3.1-8B"}')
  return home / 'L15R', {name: x.astype(float) for name, x in arrays.items()}


def compute(arrays, x, norms, rule):
  """Latents of normalised activations, and outputs for activations as they are, in NumPy.

  `rule` maps latents z, and z times the length of its row in units of activations as they are, to a mask.
  """
  C, E = (norms[end] / np.sqrt(D) for end in ('in', 'out'))
  z = (x / C) @ arrays['encoder.weight'].T + arrays['encoder.bias']
  length = np.linalg.norm(arrays['decoder.weight'], axis=0)
  f = np.where(rule(z, C * z * length), z, 0)
  return f * length, E * (f @ arrays['decoder.weight'].T + arrays['decoder.bias'])


def compute_ours(sae, params, x, C):
  f = sae.encode(params, x.astype(np.float32))
  return np.asarray(f) / C, sae.decode(params, f)


@pytest.mark.parametrize('unit_rows', [True, False])
def test_a_dictionary_takes_activations_that_are_not_normalised(unit_rows, tmp_path):
  place, arrays = publish(tmp_path, unit_rows)
  sae, params = load(place)
  assert (type(sae), sae.d_in, sae.width, sae.d_out) == (JumpReLU, D, M, None)
  x = 3 * np.random.default_rng(4).normal(size=(60, D))
  norms = CONFIG['dataset_average_activation_norm']
  expected = compute(arrays, x, norms, lambda z, scaled: scaled > THRESHOLD)
  active = (expected[0] > 0).mean()
  assert 0.05 < active < 0.9  # some latents are active and some not
  below = compute(arrays, x, norms, lambda z, scaled: z > 0)[0]
  assert ((below > 0) & (expected[0] == 0)).any()  # and some are cut by the threshold
  same(compute_ours(sae, params, x, norms['in'] / np.sqrt(D)), expected)


def test_a_transcoder_has_other_norms_for_its_output(tmp_path):
  ends = {'hook_point_in': 'blocks.3.hook_resid_mid', 'hook_point_out': 'blocks.3.hook_mlp_out'}
  place, arrays = publish(tmp_path, dataset_average_activation_norm=NORMS, **ends)
  sae, params = load(place)
  assert (sae.d_out, sae.provenance.hook_name_out) == (D, 'blocks.3.hook_mlp_out')
  x = 3 * np.random.default_rng(4).normal(size=(60, D))
  expected = compute(arrays, x, NORMS, lambda z, scaled: scaled > THRESHOLD)
  same(compute_ours(sae, params, x, NORMS['in'] / np.sqrt(D)), expected)


@pytest.mark.parametrize(
  ('act_fn', 'kind'), [('relu', ReLU), ('topk', TopK), ('JumpReLU', JumpReLU)]
)
def test_other_activation_functions_and_other_normalisations_are_read(act_fn, kind, tmp_path):
  place, arrays = publish(tmp_path, norm_activation='inference', act_fn=act_fn)
  sae, params = load(place)
  assert type(sae) is kind
  x = np.random.default_rng(4).normal(size=(60, D))

  def rule(z, scaled):
    if kind is TopK:
      return (z > 0) & (scaled >= np.sort(scaled)[:, [-4]])
    return scaled > (THRESHOLD if kind is JumpReLU else 0)

  one = {'in': np.sqrt(D), 'out': np.sqrt(D)}
  same(compute_ours(sae, params, x, 1.0), compute(arrays, x, one, rule))


def test_the_model_and_the_hook_are_kept_and_checked(tmp_path):
  place, _ = publish(tmp_path)
  found = read_metadata(place)
  assert (found.model_name, found.hook_name) == ('meta-llama/Llama-3.1-8B', HOOK)
  assert found.normalize_activations == 'none'
  assert found.check('resid_post.15', model='llama-3.1-8b') == ()
  (note,) = found.check('resid_post.15', model='meta-llama/Llama-3.1-8B-Instruct')
  assert 'Instruct' in note
  with pytest.raises(SAEError, match=r'site resid_post\.14'):
    found.check('resid_post.14')
  with pytest.raises(SAEError, match="model 'gemma-2-2b'"):
    found.check('resid_post.15', model='gemma-2-2b')
  assert load(place / 'checkpoints' / 'final.safetensors').metadata == found


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'norm_activation': 'token-wise'}, "norm_activation='token-wise'"),
    ({'use_glu_encoder': True}, 'use_glu_encoder=true'),
    ({'apply_decoder_bias_to_pre_encoder': True}, 'apply_decoder_bias_to_pre_encoder=true'),
    ({'act_fn': 'gelu'}, "unknown act_fn 'gelu'"),
    ({'jump_relu_threshold': None}, "no 'jump_relu_threshold'"),
    ({'dataset_average_activation_norm': {'in': 0}}, 'in=0'),
    ({'d_sae': M + 1}, 'not floats of shape'),
  ],
)
def test_files_that_are_another_function_are_refused(changes, message, tmp_path):
  place, _ = publish(tmp_path)
  rewritten(place / 'hyperparams.json', **changes)
  with pytest.raises(WeightsError, match=message):
    load(place)


def test_the_format_is_read_only(tmp_path):
  sae = SAES['jumprelu']
  with pytest.raises(SAEError, match='one threshold for all latents'):
    save(tmp_path / 'out', sae, single(sae)[0], format='llama_scope')
