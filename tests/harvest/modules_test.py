"""flax modules: linen's lifted scan, remat and jit, and nnx by argument and by split and merge."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mechjax import harvest, sites

L, B, D = 3, 2, 4
X = jnp.linspace(-1.0, 1.0, B * D).reshape(B, D)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    x = harvest.sow(x + nn.Dense(D)(jnp.tanh(x)), name='resid_post')
    return x, None


class Scanned(nn.Module):
  wrap: str

  @nn.compact
  def __call__(self, x):
    block = {'plain': lambda b: b, 'remat': nn.remat, 'jit': nn.jit}[self.wrap](Block)
    lifted = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True}, length=L)
    return lifted()(x, None)[0]


def linen_reference(params, x, edit=lambda i, x: x):
  kernels, biases = (np.asarray(jax.tree.leaves(params)[i]) for i in (1, 0))
  x, seen = np.asarray(x), []
  for i in range(L):
    x = edit(i, x + np.tanh(x) @ kernels[i] + biases[i])
    seen.append(x)
  return x, np.stack(seen)


@pytest.mark.parametrize('wrap', ['plain', 'remat', 'jit'])
def test_linen_scan(wrap):
  module = Scanned(wrap)
  params = module.init(jax.random.key(0), X)
  want, seen = linen_reference(params, X)
  out, acts = harvest.call_and_reap(module.apply, sites='resid_post.{0,2}')(params, X)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(acts['resid_post.2'], seen[2], rtol=1e-5, atol=1e-6)
  planted = harvest.plant(module.apply)({'resid_post.1': jnp.zeros((B, D))}, params, X)
  want, _ = linen_reference(params, X, lambda i, x: x * (i != 1))
  np.testing.assert_allclose(planted, want, rtol=1e-5, atol=1e-6)
  grad = jax.grad(lambda x: harvest.plant(module.apply)({'resid_post.1': X}, params, x).sum())(X)
  np.testing.assert_array_equal(grad, 0.0)


class Layer(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(D, D, rngs=rngs)

  def __call__(self, x):
    return harvest.sow(x + self.dense(jnp.tanh(x)), name='resid_post')


class Stack(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([Layer(rngs) for _ in range(L)])

  def __call__(self, x):
    for i, layer in enumerate(self.layers):
      with sites.layer(i):
        x = layer(x)
    return x


def nnx_reference(model, x, edit=lambda i, x: x):
  seen = []
  for i, layer in enumerate(model.layers):
    x = edit(i, x + jnp.tanh(x) @ layer.dense.kernel[...] + layer.dense.bias[...])
    seen.append(x)
  return x, seen


def check_nnx(f, model, *args):
  want, seen = nnx_reference(model, X)
  out, acts = harvest.call_and_reap(f, sites='resid_post.{0,2}')(*args, X)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(acts['resid_post.0'], seen[0], rtol=1e-5, atol=1e-6)
  planted = harvest.plant(f)({'resid_post.1': jnp.zeros((B, D))}, *args, X)
  np.testing.assert_allclose(
    planted, nnx_reference(model, X, lambda i, x: x * float(i != 1))[0], rtol=1e-5, atol=1e-6
  )


def test_nnx_by_argument():
  model = Stack(nnx.Rngs(0))
  check_nnx(lambda model, x: model(x), model, model)


def test_nnx_by_split_and_merge():
  model = Stack(nnx.Rngs(0))
  graph, state = nnx.split(model)
  check_nnx(lambda state, x: nnx.merge(graph, state)(x), model, state)


def test_nnx_jit():
  model = Stack(nnx.Rngs(0))
  graph, state = nnx.split(model)
  check_nnx(lambda state, x: nnx.jit(lambda m, x: m(x))(nnx.merge(graph, state), x), model, state)


def test_nnx_scan():
  @nnx.split_rngs(splits=L)
  @nnx.vmap
  def make(rngs):
    return Layer(rngs)

  stacked = make(nnx.Rngs(0))
  graph, state = nnx.split(stacked)

  def f(state, x):
    step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return step(x, nnx.merge(graph, state))

  x, seen = X, []
  for i in range(L):
    x = x + jnp.tanh(x) @ stacked.dense.kernel[...][i] + stacked.dense.bias[...][i]
    seen.append(x)
  out, acts = harvest.call_and_reap(f, sites='resid_post')(state, X)
  np.testing.assert_allclose(out, x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(acts['resid_post'], jnp.stack(seen), rtol=1e-5, atol=1e-6)
