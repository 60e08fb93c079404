"""Cross-layer transcoders and sets of transcoders in files, against files that are made by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml

from mechjax.errors import WeightsError
from mechjax.sae import (
  CrossLayerJumpReLU,
  CrossLayerTopK,
  JumpReLU,
  ReLU,
  SAEError,
  TopK,
  fold,
  load,
  load_set,
  read_metadata,
  save,
  save_set,
)
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors

L, D, M = 3, 5, 7
SHAPE = {'n_layers': L, 'd_in': D, 'd_out': D, 'width': M}
JUMP = CrossLayerJumpReLU(**SHAPE, sparsity=0.1)
SKIP = dataclasses.replace(JUMP, skip=True)
HOOKS = {'feature_input_hook': 'mlp.hook_in', 'feature_output_hook': 'hook_mlp_out'}
FORMATS = ('circuit_tracer', 'gemma_scope_2', 'mechjax')


def parameters(sae, seed=0):
  r = np.random.default_rng(seed)
  shapes = jax.eval_shape(sae.init, jax.random.key(0))
  params = {n: r.standard_normal(a.shape).astype(np.float32) for n, a in shapes.items()}
  if 'log_threshold' in params:
    params['log_threshold'] = np.log(r.uniform(0.1, 0.4, shapes['log_threshold'].shape))
  return params


def inputs(*lead):
  return np.random.default_rng(9).standard_normal((*lead, D)).astype(np.float32)


def by_hand(arrays, x):
  """Outputs [B, L, D] from arrays W_enc [M, D] and W_dec [M, L - l, D] of each layer; a skip is x @ A."""
  y = np.zeros_like(x)
  for n, own in enumerate(arrays):
    z = x[:, n] @ own['W_enc'].T + own['b_enc']
    f = np.where(z > own.get('threshold', 0), z, 0)
    y[:, n] += own['b_dec'] + (x[:, n] @ own['A'] if 'A' in own else 0)
    for target in range(n, L):
      y[:, target] += f @ own['W_dec'][:, target - n]
  return y


def random_layers(threshold=True, skip=True):
  r = np.random.default_rng(1)
  found = []
  for n in range(L):
    shapes = {'W_enc': (M, D), 'W_dec': (M, L - n, D), 'b_enc': (M,), 'b_dec': (D,)}
    shapes |= {'A': (D, D)} if skip else {}
    own = {name: r.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if threshold:
      own['threshold'] = r.uniform(0.1, 0.5, M).astype(np.float32)
    found.append(own)
  return found


def as_circuit_tracer(directory, layers, config=None):
  """The files as circuit-tracer's `to_safetensors` writes them, and its config."""
  directory.mkdir()
  for n, own in enumerate(layers):
    names = {'W_enc': 'W_enc', 'b_enc': 'b_enc', 'b_dec': 'b_dec', 'threshold': 'threshold'}
    names |= {'A': 'W_skip'}
    encoder = {f'{names[k]}_{n}': v for k, v in own.items() if k != 'W_dec'}
    save_safetensors(directory / f'W_enc_{n}.safetensors', encoder)
    save_safetensors(directory / f'W_dec_{n}.safetensors', {f'W_dec_{n}': own['W_dec']})
  config = {'model_name': 'gemma', 'model_kind': 'cross_layer_transcoder', **HOOKS} | (config or {})
  (directory / 'config.yaml').write_text(yaml.safe_dump(config))


def as_gemma_scope(directory, layers):
  """The files of Gemma Scope 2: encoders transposed, and directions to earlier layers that mean nothing."""
  directory.mkdir()
  for n, own in enumerate(layers):
    w_dec = np.full((M, L, D), 77.0, np.float32)
    w_dec[:, n:] = own['W_dec']
    new = {'w_enc': np.ascontiguousarray(own['W_enc'].T), 'w_dec': w_dec}
    new |= {name: own[name] for name in ('b_enc', 'b_dec', 'threshold')}
    new |= {'affine_skip_connection': own['A']} if 'A' in own else {}
    save_safetensors(directory / f'params_layer_{n}.safetensors', new)
  (directory / 'config.json').write_text(json.dumps({'model_name': 'gemma'}))


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('write', [as_circuit_tracer, as_gemma_scope])
def test_files_made_by_hand_are_read_as_the_function_that_they_describe(write, skip, tmp_path):
  layers = random_layers(skip=skip)
  write(tmp_path / 'clt', layers)
  clt, params = load(tmp_path / 'clt')
  assert (clt.n_layers, clt.d_in, clt.d_out, clt.width, clt.skip) == (L, D, D, M, skip)
  x = inputs(6, L)
  np.testing.assert_allclose(clt.reconstruct(params, x), by_hand(layers, x), atol=1e-4)
  assert load(tmp_path / 'clt').metadata.model_name == 'gemma'


def test_files_without_thresholds_are_relus(tmp_path):
  layers = random_layers(threshold=False)
  as_circuit_tracer(tmp_path / 'clt', layers)
  clt, params = load(tmp_path / 'clt')
  x = inputs(6, L)
  np.testing.assert_allclose(clt.reconstruct(params, x), by_hand(layers, x), atol=1e-4)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('sae', [JUMP, SKIP], ids=['plain', 'skip'])
def test_a_cross_layer_transcoder_comes_back_with_the_same_numbers(format, sae, tmp_path):
  params = parameters(sae)
  save(tmp_path / 'out', sae, params, format=format, about=HOOKS | {'model_name': 'gemma3-270m'})
  back, found = load(tmp_path / 'out')
  assert dataclasses.replace(back, sparsity=sae.sparsity) == sae
  assert {*found} == {*params}
  for name, value in params.items():
    tolerance = 1e-6 if name == 'log_threshold' else 0
    np.testing.assert_allclose(found[name], value, rtol=tolerance, err_msg=name)
  assert read_metadata(tmp_path / 'out').model_name == 'gemma3-270m'


def test_written_files_have_the_shapes_that_circuit_tracer_reads(tmp_path):
  params = parameters(SKIP)
  save(tmp_path / 'out', SKIP, params, format='circuit_tracer', about=HOOKS)
  for n in range(L):
    encoder, decoder = (
      SafetensorsFile(tmp_path / f'out/W_{part}_{n}.safetensors') for part in ('enc', 'dec')
    )
    np.testing.assert_array_equal(encoder.read(f'W_enc_{n}'), params['W_enc'][n].T)
    np.testing.assert_array_equal(encoder.read(f'W_skip_{n}'), params['W_skip'][n])
    assert encoder.read(f'threshold_{n}').shape == (M,)
    assert decoder.read(f'W_dec_{n}').shape == (M, L - n, D)
  config = yaml.safe_load((tmp_path / 'out/config.yaml').read_text())
  assert config == {**HOOKS, 'scan': None, 'model_kind': 'cross_layer_transcoder'}


@pytest.mark.parametrize('skip', [False, True])
def test_topk_latents_need_the_format_of_mechjax(skip, tmp_path):
  for sae in (
    CrossLayerTopK(**SHAPE, k=2, skip=skip),
    TopK(d_in=D, d_out=D, width=M, k=2, skip=skip),
  ):
    params = parameters(sae)
    place = tmp_path / type(sae).__name__
    save(place, sae, params, format='mechjax', about={'hook_name': 'mlp_norm.3'})
    back, found = load(place)
    assert back == sae
    for name, value in params.items():
      np.testing.assert_array_equal(found[name], value)
    assert load(place).metadata.hook_name == 'mlp_norm.3'
  clt = CrossLayerTopK(**SHAPE, k=2)
  for format in ('circuit_tracer', 'gemma_scope_2'):
    with pytest.raises(SAEError, match='CrossLayerTopK is not a cross-layer transcoder with thre'):
      save(tmp_path / 'no', clt, parameters(clt), format=format, about=HOOKS)
  with pytest.raises(SAEError, match="unknown format to write a CrossLayerTopK 'sae_lens'"):
    save(tmp_path / 'no', clt, parameters(clt), format='sae_lens')
  assert not (tmp_path / 'no').exists()


def test_the_format_of_mechjax_keeps_thresholds_of_zero(tmp_path):
  sae = JumpReLU(d_in=D, width=M, sparsity=0.0)
  params = parameters(sae) | {'log_threshold': np.full(M, -np.inf, np.float32)}
  save(tmp_path / 'out', sae, params, format='mechjax')
  np.testing.assert_array_equal(load(tmp_path / 'out').params['log_threshold'], -np.inf)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'mechjax_dictionary': 2}, 'version 2 of the format'),
    ({'architecture': 'tpok'}, "unknown architecture 'tpok'"),
    ({'settings': {'d_in': D, 'width': M, 'k': 99}}, 'k=99 should be'),
    ({'settings': {'d_in': D, 'width': M}}, 'do not describe a dictionary'),
    ({'settings': {'d_in': D, 'width': M, 'k': 2, 'new': 1}}, r"settings \['new'\] of 'topk'"),
    (
      {'settings': {'d_in': D, 'width': M + 1, 'k': 2}},
      r'not floats of shape \(8, 5\)|not floats of shape \(5, 8\)',
    ),
  ],
)
def test_a_config_of_mechjax_that_does_not_fit_is_refused(change, says, tmp_path):
  sae = TopK(d_in=D, width=M, k=2)
  save(tmp_path / 'out', sae, parameters(sae), format='mechjax')
  path = tmp_path / 'out/dictionary.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(WeightsError, match=says):
    load(tmp_path / 'out')


# --- scales -----------------------------------------------------------------------------------------------


def test_folding_gives_the_targets_of_unnormalised_activations():
  params, x = parameters(SKIP), inputs(6, L)
  C, E = np.array([2.0, 3.0, 0.5]), np.array([4.0, 0.25, 7.0])
  expected = E[:, None] * SKIP.reconstruct(params, x / C.astype(np.float32)[:, None])
  folded = fold(SKIP, params, C.tolist(), E.tolist())
  np.testing.assert_allclose(SKIP.reconstruct(folded, x), expected, rtol=2e-4, atol=1e-4)
  f = SKIP.encode(params, x / C.astype(np.float32)[:, None])
  np.testing.assert_allclose(SKIP.encode(folded, x), E[:, None] * f, rtol=2e-4, atol=1e-5)
  np.testing.assert_array_equal(folded['W_dec_1'][:, 0], params['W_dec_1'][:, 0])


def test_scales_that_do_not_fit_the_layers_are_errors():
  params = parameters(JUMP)
  for C, E, says in [
    ([1.0] * 2, [1.0] * 2, '3 layers'),
    (1.0, 1.0, '3 layers'),
    ([1.0] * 3, None, '3 layers'),
    ([1.0] * 3, [1.0, 0.0, 1.0], 'not positive'),
  ]:
    with pytest.raises(SAEError, match=says):
      fold(JUMP, params, C, E)
  one = TopK(d_in=D, width=M, k=2)
  with pytest.raises(SAEError, match='a dictionary of one site'):
    fold(one, parameters(one), [1.0])


# --- sets -------------------------------------------------------------------------------------------------


def set_by_hand(directory, threshold, skip):
  """The files of a set, and the outputs of each layer: x @ W_skip.T is added."""
  directory.mkdir()
  r, outputs = np.random.default_rng(2), []
  x = inputs(6)
  for n in range(L):
    shapes = {'W_enc': (M, D), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,)}
    shapes |= {'W_skip': (D, D)} if skip else {}
    own = {name: r.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    theta = r.uniform(0.1, 0.5, M).astype(np.float32) if threshold else 0
    z = x @ own['W_enc'].T + own['b_enc']
    y = np.where(z > theta, z, 0) @ own['W_dec'] + own['b_dec']
    outputs.append(y + (x @ own['W_skip'].T if skip else 0))
    own |= {'activation_function.threshold': theta} if threshold else {}
    save_safetensors(directory / f'layer_{n}.safetensors', own)
  config = {'model_name': 'gemma', 'model_kind': 'transcoder_set', 'scan': 'here', **HOOKS}
  (directory / 'config.yaml').write_text(yaml.safe_dump(config))
  return x, outputs


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('threshold', [False, True])
def test_a_set_made_by_hand_is_read_and_written_as_the_same_functions(threshold, skip, tmp_path):
  x, outputs = set_by_hand(tmp_path / 'set', threshold, skip)
  layers = load_set(tmp_path / 'set')
  assert [*layers] == [*range(L)]
  save_set(tmp_path / 'again', layers, about=HOOKS)
  for n, again in load_set(tmp_path / 'again').items():
    for sae, params in (layers[n], again):
      assert type(sae) is (JumpReLU if threshold else ReLU)
      np.testing.assert_allclose(sae.reconstruct(params, x), outputs[n], atol=1e-4)
  stated = layers[2].metadata
  assert (stated.model_name, stated.hook_name_out) == ('gemma', 'blocks.2.hook_mlp_out')
  stated.check('mlp_norm.2', 'mlp_out.2')
  with pytest.raises(SAEError, match=r'target mlp_out\.1'):
    stated.check('mlp_norm.1', 'mlp_out.1')
  one, params = load(tmp_path / 'set/layer_1.safetensors')
  np.testing.assert_allclose(one.reconstruct(params, x), outputs[1], atol=1e-4)


def test_a_directory_of_sites_is_a_set(tmp_path):
  sae = TopK(d_in=D, d_out=D, width=M, k=2)
  for n in (2, 11):
    save(tmp_path / f'mlp_norm.{n}', sae, parameters(sae, n), format='mechjax')
  layers = load_set(tmp_path)
  assert [*layers] == [2, 11]
  np.testing.assert_array_equal(layers[11].params['W_enc'], parameters(sae, 11)['W_enc'])
  with pytest.raises(WeightsError, match=r'a set of dictionaries, of the layers \[2, 11\]') as said:
    load(tmp_path)
  assert 'load_set(' in str(said.value)
  save(tmp_path / 'attn_norm.2', sae, parameters(sae), format='mechjax')
  with pytest.raises(WeightsError, match='two dictionaries of layer 2'):
    load_set(tmp_path)


def test_a_set_that_cannot_be_expressed_is_not_written(tmp_path):
  relu = ReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
  good = (relu, parameters(relu))

  def of(**changes):
    one = dataclasses.replace(relu, **changes)
    return one, parameters(one)

  topk = TopK(d_in=D, d_out=D, width=M, k=2)
  for layers, about, says in [
    ({}, HOOKS, r'of the layers \[\]'),
    ({0: good, 2: good}, HOOKS, r'of the layers \[0, 2\]'),
    ({0: good, 1: of(width=M + 1)}, HOOKS, 'different sizes'),
    ({0: of(d_out=None)}, HOOKS, 'not a transcoder of one layer'),
    ({0: (topk, parameters(topk))}, HOOKS, 'selects latents by rank'),
    ({0: good}, {'feature_input_hook': 'x'}, r"has no \['feature_output_hook'\]"),
    ({0: good}, None, r"has no \['feature_input_hook', 'feature_output_hook'\]"),
    ({0: (relu, parameters(topk) | {'more': np.zeros(1)})}, HOOKS, 'parameters'),
  ]:
    with pytest.raises(SAEError, match=says):
      save_set(tmp_path / 'out', layers, about=about)
  assert not [*tmp_path.iterdir()]


# --- damage -----------------------------------------------------------------------------------------------


def changed(path, **changes):
  file = SafetensorsFile(path)
  arrays = {name: np.array(file.read(name)) for name in file.tensors} | changes
  save_safetensors(path, {name: value for name, value in arrays.items() if value is not None})


def test_layers_that_are_missing_or_do_not_fit_are_named(tmp_path):
  def clt(spoil):
    place = tmp_path / f'clt{len([*tmp_path.iterdir()])}'
    as_circuit_tracer(place, random_layers())
    spoil(place)
    return place

  encoder = lambda d, n: d / f'W_enc_{n}.safetensors'  # noqa: E731
  decoder = lambda d, n: d / f'W_dec_{n}.safetensors'  # noqa: E731
  wide = np.zeros((M + 1, D), np.float32)
  for spoil, says in [
    (lambda d: encoder(d, 1).unlink(), r'no encoder .* of the layers \[1\]'),
    (lambda d: decoder(d, 2).unlink(), r'no decoder .* of the layers \[2\]'),
    (
      lambda d: (encoder(d, 2).unlink(), decoder(d, 2).unlink()),
      r'W_dec is float32 \(7, 3, 5\), not floats of shape \(7, 2, 5\)',
    ),
    (lambda d: encoder(d, 0).write_bytes(encoder(d, 1).read_bytes()), 'names that end in _0'),
    (lambda d: changed(encoder(d, 1), W_enc_1=wide), 'b_enc is float32'),
    (lambda d: changed(encoder(d, 1), W_skip_1=None), r'W_skip has shape None, and \(5, 5\)'),
    (lambda d: changed(encoder(d, 1), b_dec_1=np.full(D, np.nan, np.float32)), 'b_dec holds NaN'),
    (lambda d: changed(encoder(d, 1), more_1=np.zeros(2, np.float32)), 'holds the tensors'),
    (lambda d: (d / 'config.yaml').write_text('model_kind: transcoder_set'), 'model_kind='),
    (lambda d: (d / 'config.yaml').write_text('!!python/object/apply:os.getcwd []'), 'as YAML'),
    (lambda d: (d / 'config.yaml').write_text('[1, 2]'), 'expected settings by name'),
  ]:
    with pytest.raises(WeightsError, match=says):
      load(clt(spoil))


def test_the_last_layer_of_gemma_scope_is_read_and_needed(tmp_path):
  layers = random_layers()
  as_gemma_scope(tmp_path / 'clt', layers)
  _, params = load(tmp_path / 'clt')
  np.testing.assert_array_equal(params['W_dec_2'][:, 0], layers[2]['W_dec'][:, 0])
  (tmp_path / 'clt/params_layer_2.safetensors').unlink()
  with pytest.raises(WeightsError, match=r'no file .* of the layers \[2\]'):
    load(tmp_path / 'clt')


def test_wrong_files_of_gemma_scope_are_named(tmp_path):
  def clt(n, **changes):
    place = tmp_path / f'clt{len([*tmp_path.iterdir()])}'
    as_gemma_scope(place, random_layers())
    changed(place / f'params_layer_{n}.safetensors', **changes)
    return place

  flat = np.zeros((M, D), np.float32)
  for place, says in [
    (clt(0, w_dec=flat), r'w_dec of shape \(7, 5\)(.|\n)*crosscoder'),
    (clt(1, w_dec=flat), 'w_dec is float32'),
    (clt(1, w_enc=None), r'needs w_enc \[D, M\]'),
    (clt(1, affine_skip_connection=None), 'W_skip has shape None'),
  ]:
    with pytest.raises(WeightsError, match=says):
      load(place)


def test_wrong_files_of_a_set_are_named(tmp_path):
  set_by_hand(tmp_path / 'set', True, True)
  first = tmp_path / 'set/layer_0.safetensors'
  whole = first.read_bytes()
  W_enc = np.zeros((D, M), np.float32)
  for changes, says in [
    ({'W_enc': W_enc}, r'not an encoder \[M, D\]'),
    ({'W_skip': np.zeros((D, D + 1), np.float32)}, 'W_skip is float32'),
    ({'log_thresholds': np.zeros(M, np.float32)}, 'holds the tensors'),
  ]:
    first.write_bytes(whole)
    changed(first, **changes)
    with pytest.raises(WeightsError, match=says):
      load_set(tmp_path / 'set')
  first.unlink()
  with pytest.raises(WeightsError, match=r'no transcoder .* of the layers \[0\]'):
    load_set(tmp_path / 'set')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(WeightsError, match='holds no set of dictionaries'):
    load_set(tmp_path / 'empty')
