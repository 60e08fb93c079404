"""The same loop in every kind of code base: linen, nnx and real upstream classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import mechjax
from mechjax import harvest, sites
from mechjax.harvest import sow
from tests.forward import toy


class LinenBlock(linen.Module):
  @linen.compact
  def __call__(self, x, _=None):
    out = sow(linen.Dense(x.shape[-1])(jnp.tanh(x)), name='mlp_out')
    return sow(x + out, name='resid_post'), None


class LinenLoop(linen.Module):
  @linen.compact
  def __call__(self, x):
    for i in range(3):
      with sites.layer(i):
        x, _ = linen.remat(LinenBlock)()(x)
    return x


class LinenScan(linen.Module):
  @linen.compact
  def __call__(self, x):
    stack = linen.scan(
      LinenBlock, variable_axes={'params': 0}, split_rngs={'params': True}, length=3
    )
    return stack()(x, None)[0]


class NnxLoop(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])

  def __call__(self, x):
    for i, layer in enumerate(self.layers):
      with sites.layer(i):
        out = sow(layer(jnp.tanh(x)), name='mlp_out')
        x = sow(x + out, name='resid_post')
    return x


def linen_loop():
  return LinenLoop().apply, LinenLoop().init(jax.random.key(0), toy.X)


def linen_scan():
  return LinenScan().apply, LinenScan().init(jax.random.key(0), toy.X)


def nnx_loop():
  structure, state = nnx.split(NnxLoop(nnx.Rngs(0)))
  return lambda state, x: nnx.merge(structure, state)(x), state


@pytest.mark.parametrize('build', [linen_loop, linen_scan, nnx_loop])
def test_stepped_and_traced_edits_and_gradients(build):
  apply, params = build()
  forward = mechjax.iterate(apply, 'mlp_out, resid_post')
  edits = {'mlp_out.1': lambda v: v * 0}
  expected = harvest.plant(apply)(edits, params, toy.X)
  np.testing.assert_allclose(
    toy.edited(forward, edits, params, toy.X), expected, rtol=1e-5, atol=1e-6
  )
  traced = jax.jit(lambda params, x: toy.edited(forward, edits, params, x))(params, toy.X)
  np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)
  run = forward(params, toy.X)
  assert len([toy.finish(run), *run.sites]) == 7
  grads = {(i, name): g for i, name, _, g in run.backward(lambda out: (out**2).sum())}
  _, _, at = harvest.value_and_grad_at(lambda p, x: (apply(p, x) ** 2).sum(), 'mlp_out')(
    params, toy.X
  )
  for i in range(3):
    np.testing.assert_allclose(grads[i, 'mlp_out'], at[f'mlp_out.{i}'], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    toy.finish(forward(params, toy.X)), apply(params, toy.X), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('build', [linen_loop, nnx_loop])
def test_eager_runs_leave_module_stacks_as_they_were(build):
  apply, params = build()
  if build is linen_loop:
    with pytest.raises(mechjax.errors.RunError, match='traces and caches'):
      toy.finish(mechjax.iterate(apply, eagerly=True)(params, toy.X))
  else:
    for *_, _value in mechjax.iterate(apply, eagerly=True)(params, toy.X):
      break
  np.testing.assert_allclose(
    toy.finish(mechjax.iterate(apply)(params, toy.X)), apply(params, toy.X), rtol=1e-5, atol=1e-6
  )


@pytest.mark.upstream
def test_smollm2_in_unmodified_upstream_code_bit_for_bit(smollm2):
  tokens = smollm2.tokens('The capital of France is')
  forward = mechjax.iterate(smollm2.apply, 'resid_post, mlp_out')
  run = forward(smollm2.params, tokens)
  reaped = harvest.reap(smollm2.apply, sites='resid_post, mlp_out')(smollm2.params, tokens)
  for layer, name, value in run:
    np.testing.assert_allclose(value, reaped[f'{name}.{layer}'], rtol=1e-3, atol=1e-3)
  assert run.segments > 60
  assert run.distinct_segments <= 6
  np.testing.assert_allclose(run.retval, smollm2(tokens), rtol=1e-4, atol=1e-3)
  paris = smollm2.token(' Paris')
  total = 0.0
  for layer, name, value, grad in run.backward(lambda logits: logits[0, -1, paris]):
    if name == 'mlp_out' and layer == 29:
      total = float((grad * value)[0, -1].sum())
  silenced = toy.edited(
    forward, {'mlp_out.29': lambda v: v.at[0, -1].multiply(0.999)}, smollm2.params, tokens
  )
  change = float(smollm2(tokens)[0, -1, paris] - silenced[0, -1, paris])
  assert change == pytest.approx(total / 1000, rel=0.1, abs=2e-4)
