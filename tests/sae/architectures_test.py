"""Every architecture against its equations in NumPy, with each of the shared settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import (
  ARCHITECTURES,
  AuxK,
  BatchTopK,
  FeatureChoice,
  GradientTopK,
  JumpReLU,
  ReLU,
  SAEError,
  Sparse,
  TargetedJumpReLU,
  TopK,
  architecture,
  firings,
)
from mechjax.sae.architectures.batch_topk import kth_largest
from mechjax.sae.ops.matmul import offset_product
from tests.sae import plain
from tests.sae.plain import SAES, B, D, E, M, case

SETTINGS = {
  'autoencoder': {},
  'skip transcoder': {'d_out': E, 'skip': True},
  'matryoshka': {'prefixes': (2, 7, M)},
}
pytestmark = pytest.mark.usefixtures('float64')
each = pytest.mark.parametrize('name', SAES)
each_setting = pytest.mark.parametrize('setting', SETTINGS)


def dense(latents):
  return latents.to_dense() if isinstance(latents, Sparse) else latents


@functools.cache  # compilation takes most of the time, and several tests look at one result
def results(name, setting):
  """An architecture with a setting, its data, and loss, outcome, gradients and reconstruction; on the host."""
  sae = dataclasses.replace(SAES[name], **SETTINGS[setting])
  params, x, y = case(sae)

  @jax.jit
  def compute(params, x, y):
    (total, output), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, x, y)
    latents = dense(output.latents)
    return total, output, latents, firings(output.latents), grads, sae.decode(params, latents, x)

  computed = jax.tree.map(np.asarray, compute(params, x, y))
  return sae, plain.on_host(params), np.asarray(x), None if y is None else np.asarray(y), *computed


@each_setting
@each
def test_the_loss_and_its_parts_are_those_of_the_equations(name, setting):
  sae, params, x, y, total, output, *_ = results(name, setting)
  expected = plain.parts(sae, params, x, y)
  assert {*output.parts} == {*expected}
  for part, value in expected.items():
    np.testing.assert_allclose(output.parts[part], value, rtol=1e-10, err_msg=part)
  np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-10)


@each_setting
@each
def test_the_latents_and_the_error_are_those_of_the_loss(name, setting):
  sae, params, x, y, _, output, latents, fired, _, decoded = results(name, setting)
  f, _ = plain.latents(sae, params, x)
  np.testing.assert_allclose(latents, f, atol=1e-12)
  np.testing.assert_array_equal(fired, (f > 0).sum(0))
  x_hat = plain.decode(sae, params, f, x)
  np.testing.assert_allclose(decoded, x_hat, atol=1e-12)
  np.testing.assert_allclose(output.error, (x if y is None else y) - x_hat, atol=1e-12)


@each_setting
@each
def test_the_gradient_is_that_of_finite_differences(name, setting):
  """Thresholds are fixed here, since they have a pseudo-derivative; they have separate tests."""
  sae, params, x, y, _, _, _, _, grads, _ = results(name, setting)
  r = np.random.default_rng(1)

  def loss(p):
    return sum(plain.parts(sae, p, x, y, frozen=params).values())

  for moved in params.keys() - {'log_threshold', 'threshold'}:
    direction = {n: r.standard_normal(v.shape) * (n == moved) for n, v in params.items()}
    expected = plain.slope(loss, params, direction)
    found = np.sum(grads[moved] * direction[moved])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8, err_msg=moved)


@each
def test_encoding_gives_the_latents_of_training_with_any_number_of_axes(name):
  sae, params, x, *_, latents, _, _, _ = results(name, 'autoencoder')
  encode = jax.jit(lambda params, x: sae.encode(params, x))
  folded = encode(params, x.reshape(4, B // 4, D))
  if name == 'batch_topk':
    latents = encode(params, x)
    z = plain.encoder(sae, params, x) + params['b_enc']
    np.testing.assert_allclose(latents, z * (z > params['threshold']), atol=1e-12)
  np.testing.assert_allclose(folded, latents.reshape(4, B // 4, M), atol=1e-12)


@pytest.mark.parametrize('name', ['relu', 'gated', 'jumprelu', 'batch_topk'])
@pytest.mark.parametrize('setting', ['autoencoder', 'skip transcoder'])
def test_what_chooses_by_thresholds_is_a_jumprelu(name, setting):
  sae = dataclasses.replace(SAES[name], **SETTINGS[setting])
  params, x, _ = case(sae)

  def both(params, x):
    other, its_params = sae.as_jumprelu(params)
    assert type(other) is JumpReLU
    f, its_f = sae.encode(params, x), other.encode(its_params, x)
    return (f, sae.decode(params, f, x)), (its_f, other.decode(its_params, f, x))

  ours, its = jax.jit(both)(params, x)
  assert 0 < (ours[0] > 0).mean() < 1
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), its, ours)


def test_the_thresholds_of_a_gated_dictionary_are_b_mag_minus_scale_times_b_gate():
  sae = SAES['gated']
  params, _, _ = case(sae)
  p = plain.on_host(params)
  theta = np.exp(sae.as_jumprelu(params)[1]['log_threshold'])
  expected = p['b_mag'] - np.exp(p['r_mag']) * p['b_gate']
  assert (expected > 0).any()
  np.testing.assert_allclose(theta, np.maximum(expected, 0), atol=1e-12)


def test_ranks_have_no_thresholds():
  with pytest.raises(SAEError, match='TopK selects latents by rank'):
    SAES['topk'].as_jumprelu({})


def test_the_centred_product_has_the_derivatives_of_the_product():
  r = np.random.default_rng(0)
  x, centre, W, *directions = (
    jnp.asarray(r.standard_normal(size)) for size in 2 * [(B, D), (D,), (D, M)]
  )
  ours = functools.partial(offset_product, matmuls='float32')
  plainly = lambda x, centre, W: (x - centre) @ W  # noqa: E731
  for moved in ((0,), (1,), (2,), (1, 2), (0, 1, 2)):
    along = [directions[n] if n in moved else jnp.zeros_like(directions[n]) for n in range(3)]
    _, tangent = jax.jvp(ours, (x, centre, W), tuple(along))
    _, expected = jax.jvp(plainly, (x, centre, W), tuple(along))
    np.testing.assert_allclose(tangent, expected, atol=1e-12)
    grads = jax.grad(lambda *args: jnp.sum(ours(*args) ** 2), moved)(x, centre, W)
    expected = jax.grad(lambda *args: jnp.sum(plainly(*args) ** 2), moved)(x, centre, W)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-12), grads, expected)


def test_a_dense_step_is_five_products():
  sae = ReLU(d_in=32, width=256, sparsity=1.0)
  params, x = sae.init(jax.random.key(0)), jnp.zeros((128, 32), jnp.float32)
  step = jax.jit(jax.grad(lambda p, x: sae.loss(p, x)[0]))
  flops = step.lower(params, x).compile().cost_analysis()['flops']
  assert 10 < flops / (128 * 32 * 256) < 11


# --- initialisation ---------------------------------------------------------------------------------------


@each
def test_training_starts_from_unit_rows_and_their_transpose(name):
  sae = SAES[name]
  params = sae.init(jax.random.key(0))
  np.testing.assert_allclose(np.linalg.norm(params['W_dec'], axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(params['W_enc'], params['W_dec'].T)
  assert {v.dtype for v in params.values()} == {np.dtype('float32')}
  assert {k: v.shape for k, v in params.items() if k[0] == 'W'} == {
    'W_enc': (D, M),
    'W_dec': (M, D),
  }
  assert params['b_dec'].shape == (D,)
  np.testing.assert_array_equal(sae.init(jax.random.key(0), np.arange(D))['b_dec'], np.arange(D))


def test_the_rows_of_the_decoder_point_everywhere():
  W_dec = np.asarray(ReLU(d_in=8, width=4000, sparsity=0).init(jax.random.key(1))['W_dec'])
  np.testing.assert_allclose(W_dec.mean(0), 0, atol=0.02)
  np.testing.assert_allclose(W_dec.T @ W_dec / 4000, np.eye(8) / 8, atol=0.01)


def test_the_thresholds_of_a_jumprelu_start_at_a_thousandth():
  params = SAES['jumprelu'].init(jax.random.key(0))
  np.testing.assert_allclose(np.exp(params['log_threshold']), 1e-3, rtol=1e-6)


def test_a_transcoder_starts_with_independent_matrices_and_no_skip():
  sae = ReLU(d_in=D, d_out=D, width=M, skip=True, sparsity=0)
  params = sae.init(jax.random.key(0))
  assert np.abs(params['W_enc'] - params['W_dec'].T).max() > 0.1
  np.testing.assert_allclose(np.linalg.norm(params['W_enc'], axis=0), 1, rtol=1e-6)
  assert not params['W_skip'].any()


# --- several dictionaries of one shape --------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'values'),
  [
    ('relu', {'sparsity': [0.0, 0.2, 3.0]}),
    ('gated', {'sparsity': [0.0, 0.2, 3.0]}),
    ('jumprelu', {'sparsity': [0.0, 0.2, 3.0]}),
    ('topk', {'k': [1, 2, 3]}),
    ('batch_topk', {'k': [1, 5, 16]}),
  ],
)
def test_a_stack_under_vmap_is_each_dictionary_by_itself(name, values):
  sae = SAES[name]
  cases = [case(sae, seed) for seed in range(3)]
  x = cases[0][1]
  stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params for params, *_ in cases])
  gradient = jax.value_and_grad(lambda *args: sae.loss(*args)[0])
  loss, grads = jax.jit(jax.vmap(gradient, (0, None, None, 0)))(
    stack, x, None, sae.hparams(**values)
  )
  (hparam, settings), *_ = values.items()
  alone = jax.jit(gradient)
  for n, value in enumerate(settings):
    expected, expected_grads = alone(cases[n][0], x, None, sae.hparams(**{hparam: value}))
    np.testing.assert_allclose(loss[n], expected, rtol=1e-10)
    for p in grads:
      np.testing.assert_allclose(grads[p][n], expected_grads[p], rtol=1e-8, atol=1e-10, err_msg=p)


@pytest.mark.parametrize(
  ('name', 'values'), [('gated', {'sparsity': 2.0}), ('topk', {'k': 2}), ('batch_topk', {'k': 5})]
)
def test_a_setting_as_data_is_that_setting(name, values):
  sae = SAES[name]
  params, x, _ = case(sae)
  as_data = jax.jit(lambda p: sae.loss(p, x, hparams=sae.hparams(**values)))(params)
  alone = dataclasses.replace(sae, **values)
  expected = plain.parts(alone, plain.on_host(params), np.asarray(x), None, k=values.get('k'))
  jax.tree.map(np.testing.assert_allclose, as_data[1].parts, expected)


def test_other_coefficients_compile_nothing():
  sae = SAES['jumprelu']
  params, x, _ = case(sae)
  traced = []
  loss = jax.jit(lambda *args: traced.append(1) or sae.loss(*args)[0])
  values = [loss(params, x, None, sae.hparams(sparsity=s)) for s in (0.0, 1.0, 2.0)]
  assert len(traced) == 1
  np.testing.assert_allclose(values[2] - values[1], values[1] - values[0])


# --- which latents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'bfloat16'])
@pytest.mark.parametrize('shape', [(7, 11), (32, 3), (12, 4, 2), (96,)])
def test_bisection_finds_the_kth_largest(dtype, shape):
  r = np.random.default_rng(0)
  x = np.maximum(r.standard_normal(shape) * 10.0 ** r.integers(-9, 9, shape), 0)
  x = jnp.asarray(x, dtype)
  ordered = np.sort(np.asarray(x).reshape(-1))[::-1]
  find = jax.jit(kth_largest)
  for k in (1, 2, 20, 30, x.size):
    assert find(x, jnp.asarray(k)) == ordered[k - 1]
  assert find(x, jnp.asarray(x.size + 1)) == 0


def test_fewer_positive_latents_than_asked_for_are_all_there_are():
  for name in ('topk', 'batch_topk'):
    sae = dataclasses.replace(SAES[name], k=M)
    params, x, _ = case(sae)
    f = jax.jit(lambda p, x: dense(sae.loss(p, x)[1].latents))(params, x)
    z = plain.encoder(sae, plain.on_host(params), np.asarray(x)) + params['b_enc']
    np.testing.assert_allclose(f, np.maximum(z, 0), atol=1e-12)


def test_the_threshold_of_batch_topk_is_a_running_mean_of_the_smallest_activation():
  sae = dataclasses.replace(SAES['batch_topk'], decay=0.75)
  params = sae.init(jax.random.key(0))
  first = jnp.array([[0.0, 2.0], [5.0, 0.0]], jnp.float32)
  params = sae.observe(params, first)
  assert params['threshold'] == 2
  params = sae.observe(params, 2 * first)
  assert params['threshold'] == 0.75 * 2 + 0.25 * 4
  assert sae.observe(params, 0 * first)['threshold'] == params['threshold']


def test_batch_topk_learns_nothing_about_its_threshold():
  *_, grads, _ = results('batch_topk', 'autoencoder')
  assert grads['threshold'] == 0


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: ReLU(d_in=0, width=M, sparsity=0), 'ReLU.d_in=0 should be at least 1'),
    (lambda: ReLU(d_in=D, width=M, sparsity=-1), 'sparsity=-1 should be at least 0'),
    (
      lambda: ReLU(d_in=D, width=M, sparsity=0, skip=True),
      'skip=True should be False without d_out',
    ),
    (lambda: ReLU(d_in=D, width=M, sparsity=0, prefixes=(4, 8)), r'prefixes=\(4, 8\) .* width=16'),
    (lambda: ReLU(d_in=D, width=M, sparsity=0, prefixes=(8, 8, M)), 'should be increasing'),
    (lambda: ReLU(d_in=D, width=M, sparsity=0, prefixes=[8, M]), r'prefixes=\[8, 16\] .* a tuple'),
    (lambda: ReLU(d_in=D, width=M, sparsity=0, prefixes=M), 'prefixes=16 should be increasing'),
    (lambda: TopK(d_in=D, width=M, k=2, aux_loss='auxk'), r"aux_loss='auxk' .* such as AuxK\(\)"),
    (lambda: TopK(d_in=D, width=M, k=2, aux_loss=AuxK), r'aux_loss=.* should be a loss such as'),
    (lambda: SAES['topk'].init(0), r'key=0 is not a random key(.|\n)*jax\.random\.key'),
    (lambda: JumpReLU(d_in=D, width=M, sparsity=0, bandwidth=0), 'bandwidth=0 should be positive'),
    (lambda: TopK(d_in=D, width=M, k=M + 1), 'k=17 should be from 1 to width=16'),
    (lambda: TopK(d_in=D, width=M, k=2.5), 'k=2.5 should be a whole number'),
    (lambda: TopK(d_in=D, width=M, k='3'), "k='3' should be a whole number"),
    (lambda: BatchTopK(d_in=D, width=M, k=True), 'k=True should be a whole number'),
    (lambda: ReLU(d_in=D, width=1.5, sparsity=0), 'width=1.5 should be a whole number'),
    (lambda: ReLU(d_in=D, width=M, sparsity='0.1'), "sparsity='0.1' should be a finite number"),
    (lambda: JumpReLU(d_in=D, width=M, sparsity=np.inf), 'sparsity=inf should be a finite number'),
    (lambda: BatchTopK(d_in=D, width=M, k=2, decay=1), r'decay=1 should be in \[0, 1\)'),
    (lambda: SAES['topk'].hparams(k=4), 'k=4 .* selects k=3'),
    (lambda: SAES['topk'].hparams(k=[1, 0]), 'k=0 should be'),
    (lambda: SAES['relu'].hparams(width=3), r"\['width'\] of ReLU are not traced hyperparameters"),
    (lambda: architecture('topkk'), "unknown architecture 'topkk'"),
  ],
)
def test_settings_that_describe_no_dictionary_are_refused(make, message):
  with pytest.raises(SAEError, match=message):
    make()


@each
def test_data_that_do_not_fit_are_refused(name):
  sae = SAES[name]
  params, x, _ = case(sae)
  with pytest.raises(SAEError, match=r'shape \(24, 5\) for a dictionary with d_in=6'):
    sae.loss(params, x[:, :5])
  with pytest.raises(SAEError, match='d_out=None and a target'):
    sae.loss(params, x, x)
  with pytest.raises(SAEError, match=f'{M + 1} latents for a dictionary with width={M}'):
    sae.decode(params, jnp.zeros((3, M + 1)))
  (traced,) = sae.TRACED
  with pytest.raises(
    SAEError, match=rf"hparams with \['kk'\] (.|\n)*sae\.hparams\({traced}=\.\.\.\)"
  ):
    sae.loss(params, x, hparams={'kk': 3})
  with pytest.raises(SAEError, match='W_enc and W_dec have shapes'):
    sae.loss(params | {'W_dec': params['W_dec'][1:]}, x)
  trans = dataclasses.replace(sae, d_out=E, skip=True)
  params, x, y = case(trans)
  with pytest.raises(SAEError, match='d_out=5 and no target'):
    trans.loss(params, x)
  with pytest.raises(SAEError, match='not of the same tokens'):
    trans.loss(params, x, y[1:])
  with pytest.raises(SAEError, match='needs the input to decode latents'):
    trans.decode(params, trans.encode(params, x))


@pytest.mark.parametrize('name', ['topk', 'batch_topk'])
@pytest.mark.parametrize('k', [2.5, np.float32(2), jnp.float32(2)])
def test_a_number_of_latents_that_is_not_whole_is_refused_by_the_loss(name, k):
  params, x, _ = case(SAES[name])
  with pytest.raises(SAEError, match=r"hparams\['k'\]=.*2.* should be a whole number"):
    SAES[name].loss(params, x, hparams={'k': k})


@pytest.mark.parametrize(
  ('name', 'values', 'message'),
  [
    ('relu', {'sparsity': -1.0}, r'ReLU\.sparsity=-1\.0 should be at least 0'),
    ('jumprelu', {'sparsity': np.float32(np.nan)}, 'sparsity=nan should be a finite number'),
    (
      'relu',
      {'sparsity': np.ones(2)},
      r"hparams\['sparsity'\] has shape \[2\]; expected one number",
    ),
    ('batch_topk', {'k': 0}, 'k=0 should be from 1'),
    ('topk', {'k': M}, f'k={M} for a TopK that selects'),
  ],
)
def test_hyperparameters_out_of_range_are_refused_by_a_loss_that_sees_their_values(
  name, values, message
):
  params, x, _ = case(SAES[name])
  with pytest.raises(SAEError, match=message):
    SAES[name].loss(params, x, hparams=values)


@each
def test_activations_that_are_no_array_or_no_tokens_are_refused(name):
  sae = SAES[name]
  params, x, _ = case(sae)
  rows = np.asarray(x).tolist()
  for use in (sae.encode, sae.reconstruct, sae.loss):
    with pytest.raises(SAEError, match='activations are an array, got'):
      use(params, rows)
  with pytest.raises(SAEError, match='a loss of no tokens'):
    sae.loss(params, x[:0])


def test_every_name_is_an_architecture():
  elsewhere = {FeatureChoice, GradientTopK, TargetedJumpReLU}  # which have their own files of tests
  assert {architecture(name) for name in ARCHITECTURES} == elsewhere | {
    type(sae) for sae in SAES.values()
  }


def test_a_jumprelu_begins_at_the_threshold_that_is_asked_for():
  sae = JumpReLU(d_in=3, width=5, sparsity=1e-3, initial_threshold=0.04)
  np.testing.assert_allclose(sae.threshold(sae.init(jax.random.key(0))), 0.04, rtol=1e-6)
  with pytest.raises(SAEError, match=r'initial_threshold=0\.0 should be positive'):
    JumpReLU(d_in=3, width=5, sparsity=1e-3, initial_threshold=0.0)


@each
def test_a_loss_takes_tokens_along_one_axis(name):
  sae = SAES[name]
  params, x, _ = case(sae)
  for wrong in (x[None], x[0]):
    with pytest.raises(SAEError, match=r'not \[B, D\]|shape'):
      sae.loss(params, wrong)


@each
def test_what_is_not_a_number_stays_visible_in_latents(name):
  sae = SAES[name]
  params, x, _ = case(sae)
  assert jnp.isnan(sae.encode(params, x.at[0, 0].set(jnp.nan))[0]).any()
  for threshold in {'log_threshold', 'threshold'} & {*params}:
    broken = params | {threshold: jnp.full_like(params[threshold], jnp.nan)}
    assert jnp.isnan(sae.encode(broken, x)).all()
