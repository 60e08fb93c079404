"""Cross-layer transcoders against loops over layers, targets and latents in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import (
  AuxK,
  CrossLayerJumpReLU,
  CrossLayerTopK,
  JumpReLU,
  SAEError,
  TopK,
  architecture,
  firings,
)

L, D, E, M, B, K = 3, 5, 4, 6, 7, 2
SHAPE = {'n_layers': L, 'd_in': D, 'd_out': E, 'width': M}
TOPK = CrossLayerTopK(**SHAPE, k=K)
JUMP = CrossLayerJumpReLU(**SHAPE, sparsity=0.3, bandwidth=0.4, c=1.5, pre_activation=0.2)
ALL = {
  'topk': TOPK,
  'dense topk': dataclasses.replace(TOPK, sparse=False),
  'jumprelu': JUMP,
  'skip topk': dataclasses.replace(TOPK, skip=True),
  'skip jumprelu': dataclasses.replace(JUMP, skip=True),
}
each = pytest.mark.parametrize('name', ALL)
pytestmark = pytest.mark.usefixtures('float64')


def case(sae, seed=0):
  """Random parameters, inputs and targets, float64; no vector is zero."""
  r = np.random.default_rng(seed)
  n = sae.n_layers
  shapes = {'W_enc': (n, D, M), 'b_enc': (n, M), 'b_dec': (n, E)}
  shapes |= {f'W_dec_{layer}': (M, n - layer, E) for layer in range(n)}
  shapes |= {'W_skip': (n, D, E)} if sae.skip else {}
  params = {name: 0.5 * r.standard_normal(shape) for name, shape in shapes.items()}
  if isinstance(sae, CrossLayerJumpReLU):
    params['log_threshold'] = np.log(r.uniform(0.2, 0.6, (n, M)))
  return params, r.standard_normal((B, n, D)), r.standard_normal((B, n, E))


def latents_by_hand(sae, p, x):
  """Latents [B, L, M], one number at a time."""
  f = np.zeros((len(x), sae.n_layers, M))
  for b in range(len(x)):
    for layer in range(sae.n_layers):
      z = x[b, layer] @ p['W_enc'][layer] + p['b_enc'][layer]
      if isinstance(sae, CrossLayerTopK):
        chosen = np.argsort(-z)[: sae.k]
        f[b, layer, chosen] = np.maximum(z[chosen], 0)
      else:
        f[b, layer] = np.where(z > np.exp(p['log_threshold'][layer]), z, 0)
  return f


def outputs_by_hand(sae, p, f, x):
  """Targets [B, L, E]: every latent of every layer adds its direction to every later target."""
  y = np.zeros((len(x), sae.n_layers, E))
  for b in range(len(x)):
    for target in range(sae.n_layers):
      y[b, target] = p['b_dec'][target]
      if sae.skip:
        y[b, target] += x[b, target] @ p['W_skip'][target]
      for source in range(target + 1):
        for i in range(M):
          y[b, target] += f[b, source, i] * p[f'W_dec_{source}'][i, target - source]
  return y


def parts_by_hand(sae, p, x, y, dead=None):
  f = latents_by_hand(sae, p, x)
  error = y - outputs_by_hand(sae, p, f, x)
  parts = {'reconstruction': np.mean(np.sum(error**2, (1, 2))), 'sparsity': 0.0, 'aux': 0.0}
  if isinstance(sae, CrossLayerTopK):
    return parts, error
  for layer in range(sae.n_layers):
    for i in range(M):
      length = np.linalg.norm(p[f'W_dec_{layer}'][i])
      parts['sparsity'] += sae.sparsity * np.mean(np.tanh(sae.c * length * f[:, layer, i]))
      if dead is not None and dead[layer * M + i]:
        z = x[:, layer] @ p['W_enc'][layer, :, i] + p['b_enc'][layer, i]
        missing = np.maximum(np.exp(p['log_threshold'][layer, i]) - z, 0)
        parts['aux'] += sae.pre_activation * np.mean(missing) * length
  return parts, error


DEAD = np.arange(L * M) % 4 == 1


@each
def test_latents_outputs_and_loss_equal_loops_over_layers_targets_and_latents(name):
  sae = ALL[name]
  p, x, y = case(sae)
  f = latents_by_hand(sae, p, x)
  assert 0 < np.count_nonzero(f) < f.size
  np.testing.assert_allclose(sae.encode(p, x), f, atol=1e-12)
  np.testing.assert_allclose(sae.decode(p, f, x), outputs_by_hand(sae, p, f, x), atol=1e-12)
  np.testing.assert_allclose(sae.reconstruct(p, x), outputs_by_hand(sae, p, f, x), atol=1e-12)
  _, output = sae.loss(p, x, y, dead=DEAD)
  parts, error = parts_by_hand(sae, p, x, y, DEAD)
  for part, value in parts.items():
    np.testing.assert_allclose(output.parts[part], value, rtol=1e-10, err_msg=part)
  np.testing.assert_allclose(output.error, error, atol=1e-12)
  np.testing.assert_array_equal(firings(output.latents), (f > 0).sum(0).reshape(-1))


@each
def test_one_layer_at_a_time_gives_the_same(name):
  sae = ALL[name]
  p, x, _ = case(sae)
  f = latents_by_hand(sae, p, x)
  expected = outputs_by_hand(sae, p, f, x)
  for layer in range(L):
    np.testing.assert_allclose(sae.encode_layer(p, layer, x[:, layer]), f[:, layer], atol=1e-12)
    found = sae.decode_layer(p, layer, [f[:, n] for n in range(layer + 1)], x[:, layer])
    np.testing.assert_allclose(found, expected[:, layer], atol=1e-12)


def test_a_latent_writes_its_own_direction_to_each_later_target_and_nothing_to_earlier_ones():
  p, x, _ = case(TOPK)
  nothing = TOPK.decode(p, np.zeros((1, L, M)), x[:1])[0]
  for source in range(L):
    for i in (0, M - 1):
      f = np.zeros((1, L, M))
      f[0, source, i] = 2.0
      written = TOPK.decode(p, f, x[:1])[0] - nothing
      for target in range(L):
        if target < source:
          np.testing.assert_array_equal(written[target], 0)
        else:
          expected = 2 * p[f'W_dec_{source}'][i, target - source]
          np.testing.assert_allclose(written[target], expected, atol=1e-12)
          np.testing.assert_array_equal(
            TOPK.decoder(p, source, target)[i], p[f'W_dec_{source}'][i, target - source]
          )


@each
def test_gradients_equal_finite_differences(name):
  """Thresholds have estimated derivatives, which the next test checks."""
  sae = ALL[name]
  p, x, y = case(sae, seed=1)
  grads = jax.jit(jax.grad(lambda p: sae.loss(p, x, y, dead=DEAD)[0]))(p)
  total = lambda p: sum(parts_by_hand(sae, p, x, y, DEAD)[0].values())  # noqa: E731
  r, h = np.random.default_rng(2), 1e-6
  for key in sorted({*p} - {'log_threshold'}):
    direction = r.standard_normal(p[key].shape)
    slope = (
      total(p | {key: p[key] + h * direction}) - total(p | {key: p[key] - h * direction})
    ) / (2 * h)
    np.testing.assert_allclose(np.sum(grads[key] * direction), slope, rtol=1e-5, err_msg=key)


def test_gradients_of_thresholds_are_the_estimates_of_a_kernel():
  """Of each part that moves through a: dL/da (-theta/eps) K((z - theta)/eps), times theta for the logarithm."""
  sae = dataclasses.replace(JUMP, pre_activation=0.0)
  p, x, y = case(sae)
  found = jax.jit(jax.grad(lambda p: sae.loss(p, x, y)[0]))(p)['log_threshold']
  f, (_, error) = latents_by_hand(sae, p, x), parts_by_hand(sae, p, x, y)
  theta, near = np.exp(p['log_threshold']), 0
  for layer in range(L):
    for i in range(M):
      length, total = np.linalg.norm(p[f'W_dec_{layer}'][i]), 0.0
      for b in range(B):
        z = x[b, layer] @ p['W_enc'][layer, :, i] + p['b_enc'][layer, i]
        if abs(z - theta[layer, i]) < sae.bandwidth / 2:
          near += 1
          slope = sae.sparsity * sae.c * length / np.cosh(sae.c * length * f[b, layer, i]) ** 2
          for target in range(layer, L):
            slope -= 2 * error[b, target] @ p[f'W_dec_{layer}'][i, target - layer]
          total -= slope * theta[layer, i] / sae.bandwidth
      np.testing.assert_allclose(found[layer, i], total * theta[layer, i] / B, atol=1e-10)
  assert near > 10


def test_dead_latents_alone_lower_their_thresholds_towards_their_pre_activations():
  p, x, y = case(JUMP)
  plain = dataclasses.replace(JUMP, pre_activation=0.0)
  grad = lambda sae: jax.grad(lambda p: sae.loss(p, x, y, dead=DEAD)[0])(p)['log_threshold']  # noqa: E731
  found = (grad(JUMP) - grad(plain)).reshape(-1)
  z = np.einsum('bld,ldm->blm', x, p['W_enc']) + p['b_enc']
  theta = np.exp(p['log_threshold'])
  lengths = [np.linalg.norm(p[f'W_dec_{n}'].reshape(M, -1), axis=1) for n in range(L)]
  expected = JUMP.pre_activation * theta * np.mean(z < theta, 0) * np.stack(lengths)
  np.testing.assert_allclose(found, np.where(DEAD, expected.reshape(-1), 0), atol=1e-12)


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('kind', ['topk', 'jumprelu'])
def test_one_layer_is_a_transcoder(kind, skip):
  shape = {'d_in': D, 'd_out': E, 'width': M, 'skip': skip}
  if kind == 'topk':
    sae, plain = CrossLayerTopK(**shape, n_layers=1, k=K), TopK(**shape, k=K)
  else:
    own = {'sparsity': 0.0, 'bandwidth': 0.4}
    sae, plain = CrossLayerJumpReLU(**shape, n_layers=1, **own), JumpReLU(**shape, **own)
  p, x, y = case(sae)
  params = {name: value[0] for name, value in p.items() if name != 'W_dec_0'}
  params['W_dec'] = p['W_dec_0'][:, 0]
  np.testing.assert_allclose(
    sae.encode(p, x)[:, 0], plain.encode(params, jnp.asarray(x[:, 0])), atol=1e-12
  )
  found = jax.grad(lambda p: sae.loss(p, x, y)[0])(p)
  expected = jax.grad(lambda p: plain.loss(p, jnp.asarray(x[:, 0]), jnp.asarray(y[:, 0]))[0])(
    params
  )
  for name, value in expected.items():
    ours = found['W_dec_0'][:, 0] if name == 'W_dec' else found[name][0]
    np.testing.assert_allclose(ours, value, atol=1e-11, err_msg=name)


def test_k_and_sparsity_are_traced():
  p, x, y = case(TOPK)
  fewer = dataclasses.replace(TOPK, k=1)
  found = TOPK.loss(p, x, y, TOPK.hparams(k=1))[0]
  np.testing.assert_allclose(found, fewer.loss(p, x, y)[0], rtol=1e-12)
  p, x, y = case(JUMP)
  parts = JUMP.loss(p, x, y, JUMP.hparams(sparsity=0.6))[1].parts
  np.testing.assert_allclose(parts['sparsity'], 2 * JUMP.loss(p, x, y)[1].parts['sparsity'])


@pytest.mark.parametrize('kind', [TOPK, TopK(d_in=4, width=8, k=TOPK.k)])
def test_no_more_latents_can_be_traced_than_are_selected(kind):
  with pytest.raises(SAEError, match=f'traced k=.* for a {type(kind).__name__} that selects'):
    kind.hparams(k=[1, TOPK.k + 1])


def test_a_direction_of_length_zero_has_gradients_that_are_numbers():
  p, x, y = case(JUMP)
  p['W_dec_1'][2] = 0
  grads = jax.grad(lambda p: JUMP.loss(p, x, y, dead=DEAD)[0])(p)
  assert all(np.isfinite(g).all() for g in grads.values())


@each
def test_initial_parameters_have_the_bounds_of_the_paper_and_the_given_centre(name):
  sae = ALL[name]
  centre = np.arange(L * E, dtype=np.float32).reshape(L, E)
  p = sae.init(jax.random.key(0), centre)
  expected, _, _ = case(sae)
  assert {n: v.shape for n, v in p.items()} == {n: v.shape for n, v in expected.items()}
  np.testing.assert_array_equal(p['b_dec'], centre)
  for key, bound in [('W_enc', M**-0.5), ('W_dec_0', (L * E) ** -0.5)]:
    assert 0.8 * bound < np.abs(p[key]).max() <= bound
  if 'log_threshold' in p:
    np.testing.assert_allclose(np.exp(p['log_threshold']), 0.03, rtol=1e-6)
  assert sae.n_latents == L * M
  assert architecture('clt_topk') is CrossLayerTopK


def test_operations_count_every_target():
  """Per token: the encoder and its gradient, and three products for each pair of source and target."""
  pairs = sum(1 for source in range(L) for target in range(L) if target >= source)
  assert TOPK.operations_per_token == 2 * M * (2 * L * D + 3 * pairs * E)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'n_layers': 0}, 'n_layers=0 should be at least 1'),
    ({'d_out': None}, 'd_out=None should be the width'),
    ({'prefixes': (2, M)}, r'prefixes=\(2, 6\) should be \(\)'),
    ({'aux_loss': AuxK()}, 'should be None in a cross-layer'),
    ({'k': M + 1}, 'k=7 should be from 1 to width=6'),
    ({'sparsity': -1.0}, 'sparsity=-1.0 should be at least 0'),
    ({'c': 0.0}, 'c=0.0 should be positive'),
  ],
)
def test_settings_that_do_not_describe_a_cross_layer_transcoder_are_errors(change, says):
  sae = JUMP if {*change} & {'sparsity', 'c'} else TOPK
  with pytest.raises(SAEError, match=says):
    dataclasses.replace(sae, **change)


def test_wrong_arguments_are_errors():
  p, x, y = case(TOPK)
  skip = dataclasses.replace(TOPK, skip=True)
  mistakes = {
    'n_layers=3 and d_in=5': lambda: TOPK.encode(p, x[:, :2]),
    'd_in=5': lambda: TOPK.encode_layer(p, 0, x[:, 0, :4]),
    'layer 3 of': lambda: TOPK.encode_layer(p, 3, x[:, 0]),
    'layer -1 of': lambda: TOPK.decoder(p, 0, -1),
    'layer 2 do not write to layer 1': lambda: TOPK.decoder(p, 2, 1),
    'latents of shape': lambda: TOPK.decode(p, np.zeros((B, L, M + 1))),
    'latents of 1 layers for the target of layer 1': lambda: TOPK.decode_layer(p, 1, [x[:, 0]]),
    'not of the same tokens': lambda: TOPK.loss(p, x, y[:3]),
    'has a target': lambda: TOPK.loss(p, x),
    'needs the input': lambda: skip.decode(case(skip)[0], np.zeros((B, L, M))),
    'not a random key': lambda: TOPK.init(0),
    'centre of shape': lambda: TOPK.init(jax.random.key(0), np.zeros(E)),
    'have shapes': lambda: TOPK.encode(p | {'W_enc': p['W_enc'][:2]}, x),
  }
  for says, mistake in mistakes.items():
    with pytest.raises(SAEError, match=says):
      mistake()
