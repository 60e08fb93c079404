"""Schedules against their equations, and the optimiser against optax's Adam."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechjax.sae import SAEError
from mechjax.sae.ops import unit_rows
from mechjax.sae.training.optimisation import Optimisation

SETTINGS = Optimisation(
  steps=100, warm_up_steps=10, warm_up_from=0.2, decay_steps=40, sparsity_warm_up_steps=20
)


def expected_rate(step):
  rising = 0.2 + 0.8 * (1 - math.cos(math.pi * min(step / 10, 1))) / 2
  return rising * min((100 - step) / 40, 1)


def test_the_rate_rises_along_a_cosine_and_falls_along_a_line():
  found = jax.jit(jax.vmap(SETTINGS.rate))(jnp.arange(101))
  np.testing.assert_allclose(found, [expected_rate(n) for n in range(101)], atol=1e-6)
  assert (found[10:61] == found[60]).all()  # between the two
  assert found[100] == 0
  assert found.dtype == SETTINGS.rate(3).dtype == np.dtype('float32')


def test_the_sparsity_coefficient_rises_along_a_line():
  found = jax.jit(jax.vmap(SETTINGS.sparsity))(jnp.arange(30))
  np.testing.assert_allclose(found, np.minimum(np.arange(30) / 20, 1), rtol=1e-6)


def test_without_warm_ups_everything_is_constant():
  plain = Optimisation(steps=5, warm_up_steps=0, sparsity_warm_up_steps=0)
  for step in (0, 4, jnp.int32(2)):
    assert plain.rate(step) == plain.rate(1) == pytest.approx(1, abs=1e-6)
    assert plain.sparsity(step) == 1


@pytest.mark.parametrize('b1', [0.0, 0.9])
def test_the_optimiser_is_adam_on_gradients_orthogonal_to_the_decoder(b1):
  r = np.random.default_rng(0)
  shapes = {'W_enc': (3, 5), 'W_dec': (5, 3), 'b_enc': (5,)}
  params = {n: jnp.asarray(r.standard_normal(s), jnp.float32) for n, s in shapes.items()}
  settings = dataclasses.replace(SETTINGS, b1=b1, b2=0.95, eps=1e-3)
  ours, adam = settings.optimiser(), optax.scale_by_adam(b1=b1, b2=0.95, eps=1e-3)
  state, its = ours.init(params), adam.init(params)
  for scale in (1, 1e-3, 0, 10):
    grads = {n: jnp.asarray(scale * r.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    updates, state = jax.jit(ours.update)(grads, state, params)
    with jax.numpy_dtype_promotion('standard'):
      expected, its = adam.update(unit_rows.project(grads, params), its)
    # Of the size of 1, and what is left of a gradient along the decoder's row is a difference.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), updates, expected
    )


def test_without_b1_there_is_no_first_moment():
  params = {'W_dec': jnp.ones((50, 20), jnp.float32)}
  kept = {
    b1: sum(leaf.size for leaf in jax.tree.leaves(settings.optimiser().init(params)))
    for b1 in (0.0, 0.9)
    for settings in [dataclasses.replace(SETTINGS, b1=b1)]
  }
  assert kept == {0.0: 1001, 0.9: 2001}


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'steps': '3'}, "Optimisation.steps='3' should be a whole number"),
    ({'learning_rate': '3'}, "learning_rate='3' should be a finite number"),
    ({'steps': 0}, 'Optimisation.steps=0 should be at least 1'),
    ({'learning_rate': 0.0}, 'learning_rate=0.0 should be positive'),
    ({'warm_up_steps': -1}, 'warm_up_steps=-1 should be at least 0'),
    ({'warm_up_from': 1.5}, r'warm_up_from=1.5 should be in \[0, 1\]'),
    ({'warm_up_steps': 101}, 'warm_up_steps=101 of a training of steps=100'),
    ({'decay_steps': 101}, 'decay_steps=101 should be from 0 to steps=100'),
    ({'sparsity_warm_up_steps': -1}, 'sparsity_warm_up_steps=-1'),
    ({'b1': 1.0}, r'b1=1.0 should be in \[0, 1\)'),
    ({'b2': -0.1}, 'b2=-0.1'),
    ({'eps': 0.0}, 'eps=0.0 should be positive'),
  ],
)
def test_settings_out_of_range_are_refused(setting, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(SETTINGS, **setting)
