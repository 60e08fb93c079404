"""The selection of a feature choice dictionary against sorting, column by column."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mechjax.sae.ops import columns
from mechjax.sae.ops.columns import largest_of_columns


def sorted_choice(z, budgets):
  """True for the first `budgets` tokens of a stable sort of each column, largest first."""
  z = np.where(np.isnan(z), np.inf, z) + 0.0  # -0.0 is 0.0
  chosen = np.zeros(z.shape, bool)
  for i, m in enumerate(budgets):
    chosen[np.argsort(-z[:, i], kind='stable')[:m], i] = True
  return chosen


@hypothesis.given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_the_choice_is_that_of_a_stable_sort(seed, tied):
  r = np.random.default_rng(seed)
  z = r.standard_normal((13, 7)) * 10.0 ** r.integers(-20, 20, (13, 7))
  if tied:
    z = r.integers(-2, 2, (13, 7)).astype(float)
  budgets = r.integers(1, 14, 7)
  z = z.astype(np.float32) + np.float32(0)
  chosen = CHOOSE(jnp.asarray(z), jnp.asarray(budgets, jnp.int32))
  np.testing.assert_array_equal(chosen, sorted_choice(z, budgets))


CHOOSE = jax.jit(lambda z, budgets: largest_of_columns(z, budgets))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_blocks_do_not_change_the_choice(monkeypatch, dtype):
  r = np.random.default_rng(0)
  z = r.standard_normal((40, 23)).astype(dtype)
  budgets = jnp.asarray(r.integers(1, 41, 23), jnp.int32)
  whole = jax.jit(lambda z, b: largest_of_columns(z, b, blocked=False))(z, budgets)
  monkeypatch.setattr(columns, 'BLOCK_BYTES', 40 * 8 * 5)  # columns are not a multiple of a block
  blocked = jax.jit(lambda z, b: largest_of_columns(z, b))(z, budgets)
  np.testing.assert_array_equal(blocked, whole)
  np.testing.assert_array_equal(blocked, sorted_choice(z, np.asarray(budgets)))


def test_nothing_is_differentiated_through_the_choice():
  z = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), jnp.float32)
  budgets = jnp.full(3, 2, jnp.int32)
  gradient = jax.grad(lambda z: jnp.sum(jnp.where(largest_of_columns(z, budgets), z, 0)))(z)
  np.testing.assert_array_equal(gradient, largest_of_columns(z, budgets))
