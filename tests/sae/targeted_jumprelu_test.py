"""The penalties of a JumpReLU with a target: values in NumPy, gradients of the smoothed objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae import JumpReLU, TargetedJumpReLU
from tests.sae import plain
from tests.sae.plain import B, D, M, case

EPS, L0, LAMBDA, WEIGHT, PHI = 0.4, 3.0, 0.7, 2.0, 0.3
ONE = TargetedJumpReLU(
  d_in=D, width=M, l0=L0, sparsity=LAMBDA, bandwidth=EPS,
  frequency_weight=WEIGHT, frequency_target=PHI,
)  # fmt: skip


def penalties(active, weight=WEIGHT):
  """The two penalties of a mask [B, M], without lambda, token by token and latent by latent."""
  quadratic = np.mean([2 / L0 * (row.sum() - L0) ** 2 for row in active])
  excess = [max(column.mean() - PHI, 0) for column in active.T]
  return quadratic + weight * sum(e**2 for e in excess) / PHI


@functools.cache
def results(weight=WEIGHT):
  with jax.enable_x64(True):
    params, x, _ = case(ONE)
    loss = dataclasses.replace(ONE, frequency_weight=weight).loss
    (total, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x)
    found = plain.on_host(params), np.asarray(x), total, output.parts, grads
    return jax.tree.map(np.asarray, found)


def pre_activations(params, x):
  return (x - params['b_dec']) @ params['W_enc'] + params['b_enc']


@pytest.mark.parametrize('weight', [0.0, WEIGHT])
def test_the_penalties_are_those_of_the_equations(weight):
  params, x, total, parts, _ = results(weight)
  active = pre_activations(params, x) > np.exp(params['log_threshold'])
  assert (active.mean(0) > PHI).any()
  np.testing.assert_allclose(parts['sparsity'], LAMBDA * penalties(active, weight), rtol=1e-10)
  np.testing.assert_allclose(total, sum(parts.values()), rtol=1e-12)


@pytest.mark.parametrize('weight', [0.0, WEIGHT])
def test_the_gradient_of_a_threshold_is_the_formula_and_that_of_the_smoothed_objective(weight):
  params, x, _, _, grads = results(weight)
  plain_jump = JumpReLU(d_in=D, width=M, sparsity=0.0, bandwidth=EPS)
  with jax.enable_x64(True):
    rest = jax.grad(lambda p: plain_jump.loss(p, jnp.asarray(x))[0])(plain.on_device(params))
  found = grads['log_threshold'] - np.asarray(rest['log_threshold'])
  z, theta = pre_activations(params, x), np.exp(params['log_threshold'])
  active = (z > theta).astype(float)
  near = np.abs(z - theta) < EPS / 2
  excess = np.maximum(active.mean(0) - PHI, 0)
  by_active = 4 / L0 * (active.sum(1) - L0)[:, None] / B + weight * 2 * excess / PHI / B
  formula = -LAMBDA * theta * np.sum(by_active * near, 0) / EPS
  np.testing.assert_allclose(found, formula, rtol=1e-8, atol=1e-12)

  def smoothed(log_theta):  # linear in masks whose edges are ramps of the kernel's width
    ramp = np.clip((z - np.exp(log_theta)) / EPS + 0.5, 0, 1)
    return LAMBDA * np.sum(by_active * ramp)

  h, unit = 1e-7, np.eye(M)
  differences = [
    (smoothed(params['log_threshold'] + h * e) - smoothed(params['log_threshold'] - h * e))
    / (2 * h)
    for e in unit
  ]
  np.testing.assert_allclose(found, differences, rtol=1e-5, atol=1e-6)
  for name in ('W_enc', 'b_enc', 'W_dec'):
    np.testing.assert_allclose(grads[name], rest[name], atol=1e-12)


def test_it_has_no_penalty_where_every_token_has_the_target():
  params = ONE.init(jax.random.key(0))
  params = params | {'b_enc': jnp.where(jnp.arange(M) < int(L0), 1.0, -1.0).astype(jnp.float32)}
  rare = dataclasses.replace(ONE, frequency_weight=0.0)
  _, output = rare.loss(params, jnp.zeros((B, D), jnp.float32))
  assert output.parts['sparsity'] == 0


@pytest.mark.usefixtures('float64')
def test_targets_are_traced_and_a_file_holds_a_jumprelu(tmp_path):
  params, x, _ = case(ONE)
  hparams = ONE.hparams(l0=[2.0, 5.0])
  assert {*hparams} == {'l0', 'sparsity'}
  wide = {'l0': 0, 'sparsity': None}
  hparams['sparsity'] = jnp.asarray(0.7)
  found = jax.jit(jax.vmap(lambda h: ONE.loss(params, x, None, h)[0], (wide,)))(hparams)
  for n, l0 in enumerate((2.0, 5.0)):
    expected = dataclasses.replace(ONE, l0=l0).loss(params, x)[0]
    np.testing.assert_allclose(found[n], expected, rtol=1e-10)
  single = {name: v.astype(jnp.float32) for name, v in params.items()}
  for format in ('mechjax', 'sae_lens', 'gemma_scope_2'):
    sae.save(tmp_path / format, ONE, single, format=format)
    back, its = sae.load(tmp_path / format)
    assert type(back) is JumpReLU
    x_single = x.astype(jnp.float32)
    np.testing.assert_allclose(
      back.encode(its, x_single), ONE.encode(single, x_single), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'frequency_target': 0.0}, r'frequency_target=0.0 should be in \(0, 1\)'),
    ({'frequency_target': 1.0}, r'frequency_target=1.0 should be in \(0, 1\)'),
    ({'frequency_target': np.nan}, 'frequency_target=nan should be a finite number'),
    ({'frequency_weight': -1.0}, 'frequency_weight=-1.0 should be at least 0'),
    ({'l0': 0.0}, r'l0=0.0 should be in \(0, width=16\]'),
    ({'l0': 17.0}, r'l0=17.0 should be in \(0, width=16\]'),
    ({'sparsity': -1.0}, 'sparsity=-1.0 should be at least 0'),
  ],
)
def test_targets_that_cannot_be_reached_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(ONE, **change)
