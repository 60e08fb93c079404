"""Dictionaries in files of other libraries: a loaded dictionary is the same function, and a wrong file is an error."""

import dataclasses
import io
import json
import pickle
import random
import struct
import warnings
import zipfile

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mechjax.errors import FetchError, MechjaxError, WeightsError
from mechjax.sae import (
  BatchTopK,
  Gated,
  JumpReLU,
  Metadata,
  ReLU,
  SAEError,
  TopK,
  read_metadata,
)
from mechjax.sae.formats import conventions, fold, load, save, torch_zip
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors
from tests.sae import plain
from tests.sae.plain import SAES, D, E, M

AUTOENCODERS = {name: sae for name, sae in SAES.items() if name != 'topk_dense'}
TRANSCODERS = {
  f'{name} {"skip " * skip}transcoder': dataclasses.replace(sae, d_out=E, skip=skip)
  for name, sae in AUTOENCODERS.items()
  for skip in (False, True)
}
ALL = AUTOENCODERS | TRANSCODERS
each_format = pytest.mark.parametrize('format', ['gemma_scope', 'gemma_scope_2', 'sae_lens'])


def single(sae, seed=0):
  """Float32 parameters and inputs, of NumPy: nothing here has to be compiled."""
  r = np.random.default_rng(seed)
  return plain.scattered(sae, r), r.standard_normal((24, D)).astype(np.float32)


def outputs(sae, params, x):
  """Latents and reconstructions, float64, by the equations."""
  p = {name: np.asarray(value, float) for name, value in params.items()}
  x = np.asarray(x, float)
  f = plain.latents(sae, p, x)[0]
  if isinstance(sae, BatchTopK):  # the plain twin has the latents that are active in training
    z = plain.encoder(sae, p, x) + p['b_enc']
    f = np.maximum(z, 0) * (z > p['threshold'])
  return f, plain.decode(sae, p, f, x)


def expressible(format, sae):
  if format == 'sae_lens':
    return not (isinstance(sae, TopK) and sae.d_out)
  return not isinstance(sae, TopK) and (format == 'gemma_scope_2' or not sae.skip)


def same(found, expected, rtol=2e-5):
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


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


def test_a_file_of_gemma_scope_is_read_as_its_tutorial_computes(tmp_path):
  r = np.random.default_rng(0)
  raw = {'W_enc': (D, M), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,), 'threshold': (M,)}
  raw = {name: r.standard_normal(shape).astype(np.float32) for name, shape in raw.items()}
  np.savez(tmp_path / 'params.npz', **raw)
  save_safetensors(tmp_path / 'new' / 'params.safetensors', {k.lower(): v for k, v in raw.items()})
  x = r.standard_normal((50, D)).astype(np.float32)
  z = x @ raw['W_enc'] + raw['b_enc']
  f = np.maximum(z, 0) * (z > raw['threshold'])
  for place in (tmp_path, tmp_path / 'params.npz', tmp_path / 'new'):
    for transcoder in (False, True):
      sae, params = load(place, transcoder=transcoder)
      assert sae.d_out == (D if transcoder else None)
      same(outputs(sae, params, x), (f, f @ raw['W_dec'] + raw['b_dec']))


def test_gemma_scope_is_written_as_it_is_published(tmp_path):
  sae = SAES['jumprelu']
  params, _ = single(sae)
  save(tmp_path / 'a', sae, params, format='gemma_scope')
  save(tmp_path / 'b', sae, params, format='gemma_scope_2', about={'model_name': 'm'})
  with np.load(tmp_path / 'a' / 'params.npz') as old:
    assert {k: v.shape for k, v in old.items()} == {
      'W_enc': (D, M),
      'W_dec': (M, D),
      'b_enc': (M,),
      'b_dec': (D,),
      'threshold': (M,),
    }
    new = SafetensorsFile(tmp_path / 'b' / 'params.safetensors')
    for name, value in old.items():
      np.testing.assert_array_equal(new.read(name.lower()), value)
    b_enc = np.asarray(params['b_enc'], float) - np.asarray(params['b_dec']) @ params['W_enc']
    np.testing.assert_allclose(old['b_enc'], b_enc, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(old['threshold'], np.exp(params['log_threshold']), rtol=1e-6)
  assert json.loads((tmp_path / 'b' / 'config.json').read_text())['model_name'] == 'm'


def test_a_config_that_names_two_sites_makes_a_transcoder(tmp_path):
  sae = JumpReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
  params, x = single(sae)
  about = {'hf_hook_point_in': 'a.output', 'hf_hook_point_out': 'b.output'}
  save(tmp_path / 'out', sae, params, format='gemma_scope_2', about=about)
  back, found = load(tmp_path / 'out')
  assert back.d_out == D
  same(outputs(back, found, x), outputs(sae, params, x))


@pytest.mark.parametrize('format', ['gemma_scope', 'gemma_scope_2'])
def test_a_transcoder_that_would_come_back_as_an_autoencoder_is_refused(format, tmp_path):
  sae = JumpReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
  with pytest.raises(SAEError, match='state that it is an autoencoder'):
    save(tmp_path / 'out', sae, single(sae)[0], format=format)
  assert not (tmp_path / 'out').exists()


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


# --- folding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ALL)
def test_a_folded_dictionary_does_to_activations_what_the_other_does_to_normalised_ones(name):
  sae = ALL[name]
  params, x = single(sae)
  C, E_scale = 7.0, 3.0 if sae.d_out else None
  latents = E_scale or C
  f, x_hat = outputs(sae, params, x)
  same(outputs(sae, fold(sae, params, C, E_scale), C * x), (latents * f, latents * x_hat), 1e-4)


def test_folding_and_writing_give_the_formula_of_gemma_scope(tmp_path):
  sae, C = SAES['jumprelu'], 7.0
  params, _ = single(sae)
  save(tmp_path / 'out', sae, fold(sae, params, C), format='gemma_scope')
  p = {name: np.asarray(value, float) for name, value in params.items()}
  with np.load(tmp_path / 'out' / 'params.npz') as file:
    expected = {
      'W_enc': p['W_enc'],
      'W_dec': p['W_dec'],
      'b_enc': C * p['b_enc'] - C * p['b_dec'] @ p['W_enc'],
      'b_dec': C * p['b_dec'],
      'threshold': C * np.exp(p['log_threshold']),
    }
    for key, value in expected.items():
      np.testing.assert_allclose(file[key], value, rtol=1e-5, atol=1e-5)


def test_scales_that_cannot_be_are_refused():
  sae = SAES['relu']
  params, _ = single(sae)
  with pytest.raises(SAEError, match='0'):
    fold(sae, params, 0.0)
  with pytest.raises(SAEError, match='target_scale=2'):
    fold(sae, params, 1.0, 2.0)


# --- SAELens ----------------------------------------------------------------------------------------------


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


def rewritten(path, **changes):
  """A config with other settings; None leaves one out."""
  words = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in words.items() if v is not None}))


@pytest.mark.parametrize('said', [True, None])
def test_a_transcoder_whose_encoder_would_see_its_output_bias_is_refused(said, tmp_path):
  params, _ = single(ALL['jumprelu transcoder'])
  save(tmp_path / 'out', ALL['jumprelu transcoder'], params, format='sae_lens')
  rewritten(tmp_path / 'out' / 'cfg.json', apply_b_dec_to_input=said)
  with pytest.raises(WeightsError, match='a transcoder with apply_b_dec_to_input true') as error:
    load(tmp_path / 'out')
  assert '"apply_b_dec_to_input": false' in error.value.hint


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


# --- dictionary-learning ----------------------------------------------------------------------------------

KINDS = {'<f4': 'FloatStorage', '<f8': 'DoubleStorage', '<i4': 'IntStorage', '<i8': 'LongStorage'}


class Program:
  """Writes the pickle of a dict of tensors, as torch.save does, one instruction after another."""

  def __init__(self):
    self.bytes = b'\x80\x02'

  def name(self, module, name):
    self.bytes += f'c{module}\n{name}\n'.encode()
    return self

  def text(self, text):
    self.bytes += b'X' + struct.pack('<I', len(text)) + text.encode()
    return self

  def number(self, n):
    self.bytes += b'J' + struct.pack('<i', n)
    return self

  def numbers(self, *ns):
    self.bytes += b'('
    for n in ns:
      self.number(n)
    self.bytes += b't'
    return self

  def raw(self, code):
    self.bytes += code
    return self

  def tensor(self, key, array, shape=None, strides=None, offset=0):
    strides = [s // array.itemsize for s in array.strides] if strides is None else strides
    self.name('torch._utils', '_rebuild_tensor_v2').raw(b'((').text('storage')
    self.name('torch', KINDS[array.dtype.str]).text(str(key)).text('cpu').number(array.size)
    self.raw(b'tQ').number(offset).numbers(*(array.shape if shape is None else shape))
    return self.numbers(*strides).raw(b'\x89').name('collections', 'OrderedDict').raw(b')RtR')

  def dict(self, arrays):
    self.raw(b'}(')
    for key, (name, array) in enumerate(arrays.items()):
      self.text(name).tensor(key, array)
    return self.raw(b'u.')


def torch_file(path, program, arrays, order=b'little'):
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program)
    archive.writestr('archive/byteorder', order)
    for key, array in enumerate(arrays.values()):
      archive.writestr(f'archive/data/{key}', array.tobytes())


def learned(directory, kind, arrays):
  arrays = {name: np.asarray(value, order='C') for name, value in arrays.items()}
  torch_file(directory / 'ae.pt', Program().dict(arrays).bytes, arrays)
  (directory / 'config.json').write_text(json.dumps({'trainer': {'dict_class': kind}}))


def linear(p):
  return {'encoder.weight': p['W_enc'].T, 'decoder.weight': p['W_dec'].T}


def as_learned(name, p):
  """The class of dictionary-learning, its tensors, and the multiple of b_dec that its encoder does not subtract."""
  k = {'k': np.int32(3)}
  match name:
    case 'relu':
      return 'AutoEncoder', linear(p) | {'encoder.bias': p['b_enc'], 'bias': p['b_dec']}, 0
    case 'relu of x':
      return (
        'AutoEncoderNew',
        linear(p) | {'encoder.bias': p['b_enc'], 'decoder.bias': p['b_dec']},
        1,
      )
    case 'gated':
      vectors = {'decoder_bias': p['b_dec'], 'gate_bias': p['b_gate'], 'mag_bias': p['b_mag']}
      return 'GatedAutoEncoder', linear(p) | vectors | {'r_mag': p['r_mag']}, 0
    case 'topk':
      vectors = {'encoder.bias': p['b_enc'], 'b_dec': p['b_dec'], 'threshold': np.float32(-1)}
      return 'AutoEncoderTopK', linear(p) | vectors | k, 0
    case 'batch_topk':
      vectors = {'encoder.bias': p['b_enc'], 'b_dec': p['b_dec'], 'threshold': p['threshold']}
      return 'BatchTopKSAE', linear(p) | vectors | k, 0
    case 'matryoshka':
      return 'MatryoshkaBatchTopKSAE', p | k | {'group_sizes': np.array([2, 5, M - 7])}, 0
  vectors = {'threshold': np.exp(p['log_threshold'])}
  return 'JumpReluAutoEncoder', {k: v for k, v in p.items() if k != 'log_threshold'} | vectors, 1


@pytest.mark.parametrize(
  'name', ['relu', 'relu of x', 'gated', 'topk', 'batch_topk', 'matryoshka', 'jumprelu']
)
def test_dictionary_learning_is_read_without_unpickling(name, tmp_path):
  sae = SAES[{'relu of x': 'relu', 'matryoshka': 'batch_topk'}.get(name, name)]
  params, x = single(sae)
  kind, arrays, missing = as_learned(name, params)
  learned(tmp_path / 'ae', kind, arrays)
  back, found = load(tmp_path / 'ae')
  assert type(back) is type(sae)
  assert back.prefixes == ((2, 7, M) if name == 'matryoshka' else ())
  same(outputs(back, found, x), outputs(sae, params, x + missing * params['b_dec']))


def test_an_autoencoder_with_long_decoder_rows_gets_unit_ones_and_the_same_output(tmp_path):
  sae = SAES['relu']
  params, x = single(sae)
  long = params | {'W_dec': params['W_dec'] * np.linspace(0.5, 3, M, dtype=np.float32)[:, None]}
  kind, arrays, _ = as_learned('relu', long)
  learned(tmp_path / 'ae', kind, arrays)
  back, found = load(tmp_path / 'ae')
  np.testing.assert_allclose(np.linalg.norm(found['W_dec'], axis=1), 1, rtol=1e-6)
  same(outputs(back, found, x)[1:], outputs(sae, long, x)[1:])


def refused(tmp_path, program, message, arrays=None):
  path = tmp_path / 'x' / 'ae.pt'
  torch_file(path, program, {'a': np.zeros(4, np.float32)} if arrays is None else arrays)
  with pytest.raises(WeightsError, match=message) as error:
    torch_zip.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('protocol', range(5))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(protocol, tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / 'ran'), 'w'))

  refused(tmp_path, pickle.dumps({'W_enc': Evil()}, protocol), 'pickle (calls|holds)')
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  ('program', 'message'),
  [
    (Program().name('os', 'system').raw(b'(').text('true').raw(b'tR.'), "'os'.'system'"),
    (Program().raw(b'(').text('true').raw(b'ios\nsystem\n.'), 'instruction INST'),
    (Program().name('torch', 'load').raw(b')\x81.'), 'NEWOBJ'),
    (Program().name('torch._utils', '_rebuild_tensor_v2').raw(b')R.'), '_rebuild_tensor_v2'),
    (Program().text('collections').text('OrderedDict').raw(b'\x93)R.'), '^((?!os).)*not|damaged'),
    (Program().raw(b'}('), 'damaged'),
    (Program().raw(b'u.'), 'damaged'),
    (Program().raw(b'h\x05.'), 'damaged'),
    (Program().raw(b'}}b.'), None),
    (Program().raw(b')}b.'), 'attributes'),
    (Program().raw(b'}').number(1).number(1).raw(b's.'), 'string keys'),
    (Program().raw(b'}').text('a').number(1).raw(b's.'), 'something else than a tensor'),
    (Program().number(1).raw(b'.'), 'does not describe a dict'),
    (Program().raw(b'('), 'damaged'),
    (Program().raw(b'(' * 50_000 + b't' * 50_000 + b'.'), 'dict'),
    (Program().raw(b'\x8a\x01\x01' + b'0.'), 'POP'),
    (
      Program().raw(b'(').text('storage').name('os', 'x').text('0').text('').number(1).raw(b'tQ.'),
      'storage',
    ),
  ],
)
def test_every_other_use_of_the_machine_is_refused(program, message, tmp_path):
  if message is None or b'OrderedDict' in program.bytes:
    torch_file(tmp_path / 'x' / 'ae.pt', program.bytes, {})
    assert torch_zip.read(tmp_path / 'x' / 'ae.pt') == {}
  else:
    refused(tmp_path, program.bytes, message)


@pytest.mark.parametrize(
  ('shape', 'strides', 'offset'),
  [((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (3, 1), 0), ((1 << 30,), (0,), 0), ((2,), (1,), -1)],
)
def test_a_tensor_outside_of_its_bytes_is_refused(shape, strides, offset, tmp_path):
  array = np.zeros(4, np.float32)
  program = Program().raw(b'}').text('a').tensor(0, array, shape, strides, offset).raw(b's.').bytes
  refused(tmp_path, program, 'does not lie within|impossible|describes tensors of')
  refused(
    tmp_path, program, 'does not lie within|impossible|describes tensors of', {'a': array[:3]}
  )


def test_many_tensors_of_the_same_bytes_are_refused(tmp_path):
  program = Program().raw(b'}(')
  for i in range(40):
    program.text(f'a{i}').tensor(0, np.zeros(4096, np.float32))
  refused(
    tmp_path, program.raw(b'u.').bytes, 'share their bytes', {'a': np.zeros(4096, np.float32)}
  )


def test_views_are_read_as_pytorch_lays_them_out(tmp_path):
  array = np.arange(12, dtype=np.float32)
  program = Program().raw(b'}').text('a').tensor(0, array, (3, 2), (1, 4), 2).raw(b's.').bytes
  torch_file(tmp_path / 'ae.pt', program, {'a': array})
  np.testing.assert_array_equal(torch_zip.read(tmp_path / 'ae.pt')['a'], [[2, 6], [3, 7], [4, 8]])


def test_another_byte_order_and_a_file_before_pytorch_1_6_are_refused(tmp_path):
  torch_file(tmp_path / 'big.pt', Program().dict({}).bytes, {}, b'big')
  with pytest.raises(WeightsError, match='byte order'):
    torch_zip.read(tmp_path / 'big.pt')
  (tmp_path / 'old.pt').write_bytes(pickle.dumps({'a': 1}, 2))
  with pytest.raises(WeightsError, match='not a zip file'):
    torch_zip.read(tmp_path / 'old.pt')


@pytest.mark.truth
@pytest.mark.parametrize('parameters', [False, True])
def test_what_pytorch_writes_is_read(parameters, tmp_path):
  import torch  # there where tests of this mark are run

  layer = torch.nn.Linear(3, 5)
  layer.register_buffer('k', torch.tensor(7, dtype=torch.int32))
  layer.register_buffer('halves', torch.arange(6).to(torch.bfloat16).reshape(2, 3).T)
  layer.register_buffer('rows', torch.arange(20.0).reshape(4, 5)[1:3, ::2])
  layer.register_buffer('empty', torch.zeros(0, 3))
  state = dict(layer.named_parameters()) if parameters else layer.state_dict()
  torch.save(state, tmp_path / 'ae.pt')
  found = torch_zip.read(tmp_path / 'ae.pt')
  assert {*found} == {*state}
  for name, value in state.items():
    np.testing.assert_array_equal(found[name].astype(float), value.detach().to(torch.float64))


# --- damage -----------------------------------------------------------------------------------------------


def published(directory, format):
  sae = SAES['jumprelu']
  params, _ = single(sae)
  if format == 'dictionary_learning':
    kind, arrays, _ = as_learned('jumprelu', params)
    learned(directory, kind, arrays)
  else:
    save(directory, sae, params, format=format)
  return max(directory.iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
  'format', ['gemma_scope', 'gemma_scope_2', 'sae_lens', 'dictionary_learning']
)
def test_a_truncated_or_damaged_file_is_an_error_and_never_a_crash(format, tmp_path):
  weights = published(tmp_path / 'out', format)
  whole = weights.read_bytes()
  r = random.Random(0)
  for _ in range(30):
    weights.write_bytes(whole[: r.randrange(len(whole))])
    with pytest.raises(MechjaxError):
      load(tmp_path / 'out')
  for _ in range(80):
    damaged = bytearray(whole)
    for _ in range(r.randint(1, 4)):
      damaged[r.randrange(len(damaged))] = r.randrange(256)
    weights.write_bytes(damaged)
    try:
      sae, params = load(tmp_path / 'out')
    except MechjaxError:
      continue
    assert params['W_enc'].shape == (sae.d_in, sae.width) == (D, M)


def test_an_npz_of_objects_and_a_zip_that_unfolds_into_too_much_are_refused(tmp_path):
  np.savez(tmp_path / 'params.npz', W_enc=np.array([{}], dtype=object))
  with pytest.raises(WeightsError, match='objects'):
    load(tmp_path)
  np.savez_compressed(tmp_path / 'params.npz', W_enc=np.zeros(1_000_000))
  with pytest.raises(WeightsError, match='claims to hold'):
    load(tmp_path)
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 50,)}
  )
  with zipfile.ZipFile(tmp_path / 'params.npz', 'w') as archive:
    archive.writestr('W_enc.npy', header.getvalue() + bytes(16))
  with pytest.raises(WeightsError, match='damaged header'):
    load(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'threshold': None}, 'threshold'),
    ({'extra': np.zeros(3, np.float32)}, 'extra'),
    ({'b_enc': np.zeros(M + 1, np.float32)}, r'b_enc is float32 \(17,\)'),
    ({'b_dec': np.full(D, np.nan, np.float32)}, 'NaN'),
    ({'b_dec': np.zeros(D, np.int32)}, 'int32'),
    ({'W_dec': np.zeros((M, 2, D), np.float32)}, 'across several layers'),
    ({'scaling_factor': np.full(M, 2.0)}, 'scaling_factor'),
    ({'scaling_factor': np.ones(M)}, None),
  ],
)
def test_another_set_of_tensors_is_an_error_that_names_the_tensor(change, message, tmp_path):
  weights = published(tmp_path / 'out', 'gemma_scope')
  with np.load(weights) as file:
    arrays = {k: v for k, v in {**file, **change}.items() if v is not None}
  np.savez(weights, **arrays)
  if message is None:
    load(tmp_path / 'out')
  else:
    with pytest.raises(WeightsError, match=message):
      load(tmp_path / 'out')


def test_one_array_twice_in_an_npz_is_refused(tmp_path):
  path = published(tmp_path / 'out', 'gemma_scope')
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  for name in ('b_enc.npy', 'b_enc'):
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w') as archive:
      warnings.simplefilter('ignore')
      for member, content in [*members.items(), (name, members['b_dec.npy'])]:
        archive.writestr(member, content)
    with pytest.raises(WeightsError, match="holds 'b_enc' 2 times"):
      load(path)
  with zipfile.ZipFile(path, 'w') as archive:
    for member, content in [*members.items(), ('w_enc.npy', members['W_enc.npy'])]:
      archive.writestr(member, content)
  with pytest.raises(WeightsError, match='holds W_enc under two names'):
    load(path)


def changed(tmp_path, change):
  """An .npz of Gemma Scope whose arrays a function has changed."""
  path = published(tmp_path / 'out', 'gemma_scope')
  with np.load(path) as found:
    arrays = dict(found)
  change(arrays)
  np.savez(path, **arrays)
  return path


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize('name', ['W_enc', 'b_dec', 'threshold'])
def test_a_number_that_is_not_finite_in_float32_is_refused_by_the_name_of_its_array(
  name, value, tmp_path
):
  def change(arrays):
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name].flat[3] = value

  with pytest.raises(WeightsError, match=f'{name} holds NaN or infinity'):
    load(changed(tmp_path, change))


def test_a_bias_that_only_overflows_in_our_convention_is_refused(tmp_path):
  path = changed(tmp_path, lambda arrays: arrays['b_dec'].fill(3e38))
  with pytest.raises(WeightsError, match='b_enc holds numbers that are too large for float32'):
    load(path)


@pytest.mark.parametrize('shape', [(), (1,)])
def test_one_threshold_is_that_of_every_latent(shape, tmp_path):
  half = lambda shape: lambda arrays: arrays.update(threshold=np.full(shape, 0.5, np.float32))  # noqa: E731
  one, many = (load(changed(tmp_path / str(s), half(s))) for s in (shape, (M,)))
  assert one.params['log_threshold'].shape == (M,)
  np.testing.assert_array_equal(one.params['log_threshold'], many.params['log_threshold'])


def test_arrays_in_the_order_of_fortran_are_read(tmp_path):
  expected = load(published(tmp_path / 'right', 'gemma_scope')).params
  turn = lambda arrays: arrays.update({k: np.asfortranarray(v) for k, v in arrays.items()})  # noqa: E731
  for name, value in load(changed(tmp_path, turn)).params.items():
    np.testing.assert_array_equal(value, expected[name])


def test_a_place_with_a_name_that_no_file_has_is_not_there():
  with pytest.raises(WeightsError, match='neither an existing path nor the name'):
    load('a' * 300 + '!')


@each_format
def test_nothing_is_overwritten_and_nothing_half_written_is_left(format, tmp_path, monkeypatch):
  sae = SAES['relu']
  params, _ = single(sae)
  save(tmp_path / 'out', sae, params, format=format)
  before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
  with pytest.raises(WeightsError, match='there already'):
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


# --- finding ----------------------------------------------------------------------------------------------


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
  assert all(pattern.startswith('layer_20/width_16k/average_l0_71/') for pattern in patterns)
  with pytest.raises(FetchError, match='no folder'):
    load('google/gemma-scope-2b-pt-res/layer_21')
  with pytest.raises(WeightsError, match='neither an existing path nor'):
    load('google/gemma-scope/../..')

  def unreachable(*_, **__):
    raise RuntimeError('no network')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
  with pytest.raises(FetchError, match='no network'):
    load('google/gemma-scope-2b-pt-res/layer_20')


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


def test_moving_the_centre_back_and_forth_changes_nothing():
  for sae in (
    ReLU(d_in=D, width=M, sparsity=0.0),
    Gated(d_in=D, width=M, sparsity=0.0),
    BatchTopK(d_in=D, width=M, k=2),
  ):
    arrays = conventions.on_host(single(sae)[0])
    back = conventions.centre(conventions.uncentre(arrays))
    for name, value in arrays.items():
      np.testing.assert_allclose(back[name], value, rtol=1e-5, atol=1e-6)
