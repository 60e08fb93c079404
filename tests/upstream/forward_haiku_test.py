"""Iterating over a haiku model: its frames and parameters are unchanged, however the loop ends."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import harvest, sites
from tests.forward import toy

pytestmark = pytest.mark.haiku


def model(x):
  hk = importlib.import_module('haiku')
  for i in range(3):
    with sites.layer(i):
      out = harvest.sow(hk.Linear(4)(jnp.tanh(x)), name='mlp_out')
      x = harvest.sow(x + out, name='resid_post')
  return x


@pytest.fixture(scope='module')
def apply_and_params():
  hk = importlib.import_module('haiku')
  transformed = hk.without_apply_rng(hk.transform(model))
  return transformed.apply, transformed.init(jax.random.key(0), toy.X)


@pytest.mark.parametrize('eagerly', [False, True])
def test_an_edit_is_a_plant(apply_and_params, eagerly):
  apply, params = apply_and_params
  forward = mechjax.iterate(apply, 'mlp_out', eagerly=eagerly)
  edits = {'mlp_out.1': lambda v: v * 0}
  expected = harvest.plant(apply)(edits, params, toy.X)
  np.testing.assert_allclose(
    toy.edited(forward, edits, params, toy.X), expected, rtol=1e-5, atol=1e-6
  )
  traced = jax.jit(lambda p, x: toy.edited(forward, edits, p, x))(params, toy.X)
  np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)
  for layer, *_ in forward(params, toy.X):
    if layer == 1:
      break
  np.testing.assert_allclose(
    toy.finish(forward(params, toy.X)), apply(params, toy.X), rtol=1e-5, atol=1e-6
  )


def test_gradients_are_those_of_planting(apply_and_params):
  apply, params = apply_and_params
  run = mechjax.iterate(apply, 'resid_post')(params, toy.X)
  toy.finish(run)
  _, _, expected = harvest.value_and_grad_at(lambda p, x: apply(p, x).sum(), 'resid_post')(
    params, toy.X
  )
  for layer, name, _, grad in run.backward(jnp.sum):
    np.testing.assert_allclose(grad, expected[f'{name}.{layer}'], rtol=1e-5, atol=1e-6)
