"""Files of SAELens: old and new configs are read, and a setting that mechjax cannot follow is an error."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.sae.formats import load, save
from mechjax.weights.safetensors_writing import save as save_safetensors
from tests.sae.formats.cases import ALL, outputs, rewritten, same, single
from tests.sae.plain import SAES, D, M


def saelens(directory, words, arrays):
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'cfg.json').write_text(json.dumps(words))
  save_safetensors(directory / 'sae_weights.safetensors', arrays)


def test_an_old_config_and_an_encoder_that_sees_x_are_read(tmp_path):
  for name in ('relu', 'gated', 'jumprelu'):
    sae = SAES[name]
    params, x = single(sae)
    save(tmp_path / name, sae, params, format='sae_lens')
    path = tmp_path / name / 'cfg.json'
    words = json.loads(path.read_text())
    del words['metadata']
    path.write_text(
      json.dumps({**words, 'apply_b_dec_to_input': False, 'activation_fn_str': 'relu'})
    )
    back, found = load(tmp_path / name)
    same(outputs(back, found, x), outputs(sae, params, x + params['b_dec']))


def test_topk_before_sae_lens_6_and_with_long_decoder_rows_is_read(tmp_path):
  sae = SAES['topk']
  params, x = single(sae)
  save(tmp_path / 'out', sae, params, format='sae_lens')
  words = json.loads((tmp_path / 'out' / 'cfg.json').read_text())
  old = {'activation_fn_str': 'topk', 'activation_fn_kwargs': {'k': 3}}
  kept = {k: v for k, v in words.items() if k not in ('architecture', 'k', 'metadata')}
  length = np.linspace(0.5, 3, M).astype(np.float32)
  arrays = params | {
    'W_enc': params['W_enc'] / length,
    'b_enc': params['b_enc'] / length,
    'W_dec': params['W_dec'] * length[:, None],
  }
  saelens(tmp_path / 'old', {**kept, **old, 'rescale_acts_by_decoder_norm': True}, arrays)
  same(outputs(*load(tmp_path / 'old'), x), outputs(sae, params, x))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'apply_b_dec_to_input': 'false'}, "apply_b_dec_to_input='false'; expected true or false"),
    ({'d_in': True}, 'd_in=True; expected an integer'),
    ({'finetuning_scaling_factor': 'x'}, "finetuning_scaling_factor='x'; expected true or false"),
    ({'metadata': {'prepend_bos': 'yes'}}, "prepend_bos='yes'; expected true or false"),
    ({'metadata': [1]}, r'metadata=\[1\]; expected an object'),
    ({'normalize_activations': 'layer_norm'}, 'layer_norm'),
    ({'normalize_activations': 'expected_average_only_in'}, 'expected_average_only_in'),
    ({'architecture': 'temporal'}, 'temporal'),
    ({'architecture': ['standard']}, 'standard'),
    ({'architecture': 'gated'}, 'b_gate'),
    ({'d_in': D + 1}, 'W_enc'),
    ({'d_sae': '16'}, 'd_sae'),
    ({'activation_fn': 'tanh-relu'}, 'tanh-relu'),
    ({'finetuning_scaling_factor': True}, 'finetuning_scaling_factor'),
    ({'architecture': 'topk', 'k': M + 1}, 'k=17'),
  ],
)
def test_a_config_that_asks_for_something_else_is_an_error_that_names_it(change, message, tmp_path):
  params, _ = single(SAES['relu'])
  save(tmp_path / 'out', SAES['relu'], params, format='sae_lens')
  path = tmp_path / 'out' / 'cfg.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(WeightsError, match=message):
    load(tmp_path / 'out')


@pytest.mark.parametrize(
  ('how', 'cause', 'hint'),
  [
    ('expected_average_only_in', 'multiplied by one constant', 'fold_activation_norm_scaling'),
    (True, 'multiplied by one constant', 'fold_activation_norm_scaling_factor'),
    ('constant_norm_rescale', 'divided by its own norm', 'encode with SAELens'),
    ('layer_norm', 'its own mean and deviation', 'encode with SAELens'),
    ('covariance_whitening', 'a mean and a matrix', 'fold_activation_whitening'),
  ],
)
def test_a_refused_normalisation_says_what_can_be_done_about_that_one(how, cause, hint, tmp_path):
  params, _ = single(SAES['relu'])
  save(tmp_path / 'out', SAES['relu'], params, format='sae_lens')
  rewritten(tmp_path / 'out' / 'cfg.json', normalize_activations=how)
  with pytest.raises(WeightsError) as error:
    load(tmp_path / 'out')
  assert cause in error.value.cause
  assert hint in error.value.hint


@pytest.mark.parametrize('said', [True, None])
def test_a_transcoder_whose_encoder_would_see_its_output_bias_is_refused(said, tmp_path):
  params, _ = single(ALL['jumprelu transcoder'])
  save(tmp_path / 'out', ALL['jumprelu transcoder'], params, format='sae_lens')
  rewritten(tmp_path / 'out' / 'cfg.json', apply_b_dec_to_input=said)
  with pytest.raises(WeightsError, match='a transcoder with apply_b_dec_to_input true') as error:
    load(tmp_path / 'out')
  assert '"apply_b_dec_to_input": false' in error.value.hint


def test_half_precision_is_read_as_float32_and_a_negative_threshold_as_a_relu(tmp_path):
  params, x = single(SAES['relu'])
  arrays = {k: v.astype(ml_dtypes.bfloat16) for k, v in params.items()}
  words = {
    'architecture': 'jumprelu',
    'd_in': D,
    'd_sae': M,
    'metadata': {'sae_lens_version': '6.0.0'},
  }
  saelens(tmp_path, words, arrays | {'threshold': np.full(M, -1, np.float32)})
  sae, found = load(tmp_path)
  assert {v.dtype for v in found.values()} == {jnp.dtype('float32')}
  same(
    outputs(sae, found, x),
    outputs(SAES['relu'], {k: v.astype(np.float32) for k, v in arrays.items()}, x),
  )
