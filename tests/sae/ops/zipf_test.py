"""Budgets of Zipf's law against exact arithmetic, and the fit against densities that were made from it."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import SAEError
from mechjax.sae.ops.zipf import fit_zipf, whole_budgets, zipf_weights

M = 12
BUDGETS = jax.jit(
  lambda weights, total, most: whole_budgets(WEIGHTS[weights], total, most), static_argnums=(0, 2)
)
WEIGHTS = {
  (alpha, beta): zipf_weights(M, alpha, beta)
  for alpha in (0.0, 0.5, 1.0, 3.0)
  for beta in (0.0, 2.5)
}


def filled(weights, total, most):
  """Real budgets min(max(c w, 1), most) whose sum is `total`, by bisection in double precision."""
  low, high = 0.0, most / weights.min()
  for _ in range(200):
    c = (low + high) / 2
    low, high = (c, high) if np.clip(c * weights, 1, most).sum() < total else (low, c)
  return np.clip(low * weights, 1, most)


@given(kind=st.sampled_from([*WEIGHTS]), most=st.sampled_from([3, 50, 4096]), share=st.floats(0, 1))
def test_budgets_sum_exactly_and_are_near_the_proportions(kind, most, share):
  total = M + int(share * (M * most - M))
  budgets = np.asarray(BUDGETS(kind, total, most))
  assert budgets.sum() == total
  assert budgets.min() >= 1
  assert budgets.max() <= most
  assert (np.abs(budgets - filled(WEIGHTS[kind], total, most)) < 2).all()


def test_equal_weights_give_equal_budgets():
  np.testing.assert_array_equal(whole_budgets(zipf_weights(4, 0, 0), 12, 9), [3, 3, 3, 3])
  np.testing.assert_array_equal(whole_budgets(zipf_weights(4, 0, 0), 14, 9), [4, 4, 3, 3])


def test_budgets_of_large_batches_sum_exactly():
  weights = zipf_weights(6144, 0.9, 4.0)
  budgets = np.asarray(whole_budgets(weights, 4096 * 32, 4096))
  assert budgets.sum() == 4096 * 32
  assert (np.diff(budgets) <= 0).all()
  expected = filled(weights, 4096 * 32, 4096)
  assert (np.abs(budgets - expected) < 1 + 1e-3 * expected).all()


@pytest.mark.parametrize(('alpha', 'beta'), [(0.7, 3.0), (1.5, 40.0)])
def test_the_fit_finds_the_law_that_made_the_densities(alpha, beta):
  densities = 5 * zipf_weights(500, alpha, beta)
  shuffled = np.random.default_rng(0).permutation(np.append(densities, np.zeros(7)))
  np.testing.assert_allclose(fit_zipf(shuffled), (alpha, beta), rtol=2e-2)


def test_a_law_of_large_numbers_has_budgets_and_one_that_is_too_steep_is_refused():
  weights = zipf_weights(200, 105.0, 2000.0)
  np.testing.assert_allclose(
    weights / weights[0], (np.arange(2001, 2201) / 2001) ** -105.0, rtol=1e-9
  )
  assert int(whole_budgets(weights, 4096, 512).sum()) == 4096
  for alpha, beta in ((40, 0.0), (5, -0.9999999), (1000, 0.0)):
    with pytest.raises(SAEError, match='too steep'):
      whole_budgets(zipf_weights(10, alpha, beta), 144, 16)


@pytest.mark.parametrize(
  ('densities', 'message'),
  [
    (np.ones((2, 3)), r'densities of shape \(2, 3\)'),
    (np.array([0.1, np.nan, 0.2]), 'not finite'),
    (np.array([0.1, -0.1, 0.2]), 'negative'),
    (np.array([0.1, 0.0, 0.2]), '2 latents are ever active'),
  ],
)
def test_densities_that_cannot_be_fitted_are_refused(densities, message):
  with pytest.raises(SAEError, match=message):
    fit_zipf(densities)
