"""Gradients at sites equal jax.grad of planting, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.errors import HarvestError, SiteError

L, D = 6, 4
W = jax.random.normal(jax.random.key(0), (L, D, D))
X = jnp.arange(float(D))


def model(scan, wrap):
  def layer(w, x):
    m = harvest.sow(jnp.tanh(x @ w), name='mlp_out')
    return harvest.sow(x + jax.nn.silu(m), name='resid_post')

  block = wrap(layer)

  def f(w, x):
    if scan:
      x, _ = jax.lax.scan(lambda x, w: (block(w, x), None), x, w)
    else:
      for i in range(L):
        with sites.layer(i):
          x = block(w[i], x)
    return (harvest.sow(x * 2, name='logits') ** 2).sum()

  return f


MODELS = pytest.mark.parametrize(
  'f',
  [model(s, w) for s in (False, True) for w in (lambda b: b, jax.jit, jax.checkpoint)],
  ids=[f'{s}-{w}' for s in ('unrolled', 'scan') for w in ('plain', 'jit', 'checkpoint')],
)


@MODELS
@pytest.mark.parametrize('request_', ['*', 'mlp_out.{1,4}, logits'])
def test_they_equal_the_gradient_of_planting(f, request_):
  value, acts, grads = harvest.value_and_grad_at(f, request_)(W, X)
  np.testing.assert_allclose(value, f(W, X), rtol=1e-6)
  assert list(acts) == list(grads)
  plant = harvest.plant(f)
  wants = jax.jit(lambda vs: {s: jax.grad(lambda v: plant({s: v}, W, X))(vs[s]) for s in vs})(acts)
  for site, want in wants.items():
    np.testing.assert_allclose(grads[site], want, rtol=2e-4, atol=1e-6, err_msg=site)


def test_they_equal_finite_differences():
  f = model(True, lambda b: b)
  _, acts, grads = harvest.value_and_grad_at(f, 'mlp_out.3')(W, X)
  plant, a, step = harvest.plant(f), acts['mlp_out.3'], 1e-2
  for i in range(D):
    up, down = (plant({'mlp_out.3': a.at[i].add(s)}, W, X) for s in (step, -step))
    np.testing.assert_allclose(
      grads['mlp_out.3'][i], (up - down) / (2 * step), rtol=2e-2, atol=2e-2
    )


@MODELS
def test_traced_layers_give_the_same_gradients(f):
  all_layers = harvest.value_and_grad_at(f, 'mlp_out')(W, X)[2]['mlp_out']
  layers = jnp.array([4, 1])
  some = jax.jit(lambda l: harvest.value_and_grad_at(f, {'mlp_out': l})(W, X)[2]['mlp_out'])(layers)
  np.testing.assert_allclose(some, all_layers[layers], rtol=1e-5, atol=1e-6)


def test_aux_comes_back_beside_the_scalar():
  f = model(True, lambda b: b)
  (value, aux), _, _ = harvest.value_and_grad_at(
    lambda w, x: (f(w, x), x + 1), 'logits', has_aux=True
  )(W, X)
  np.testing.assert_allclose(value, f(W, X), rtol=1e-6)
  np.testing.assert_allclose(aux, X + 1)


def test_it_works_under_vmap_and_jit():
  f = model(True, lambda b: b)
  xs = jnp.stack([X, X + 1])
  grads = jax.jit(jax.vmap(lambda x: harvest.value_and_grad_at(f, 'mlp_out.{2,5}')(W, x)[2]))(xs)
  for b in range(2):
    want = harvest.value_and_grad_at(f, 'mlp_out.5')(W, xs[b])[2]['mlp_out.5']
    np.testing.assert_allclose(grads['mlp_out.5'][b], want, rtol=1e-5, atol=1e-6)


def test_results_that_are_not_scalars_and_integer_sites_are_errors():
  with pytest.raises(HarvestError, match='floating-point scalar'):
    harvest.value_and_grad_at(lambda x: harvest.sow(x, name='a'), 'a')(X)
  with pytest.raises(HarvestError, match='no gradient'):
    harvest.value_and_grad_at(lambda i: harvest.sow(i, name='a').sum().astype(jnp.float32), 'a')(
      jnp.arange(3)
    )
  with pytest.raises(SiteError, match='no site matches'):
    harvest.value_and_grad_at(model(True, lambda b: b), 'mlp_out.99')(W, X)
