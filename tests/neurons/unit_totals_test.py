"""Ratios of sums with standard errors over units, against their definition in plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.neurons.unit_totals import Estimates, UnitTotals


@given(
  units=st.lists(st.integers(1, 5), min_size=1, max_size=6),
  cuts=st.lists(st.integers(1, 6), max_size=20),
  seed=st.integers(0, 99),
)
def test_a_ratio_has_the_error_of_its_residuals_however_the_tokens_are_cut(units, cuts, seed):
  random = np.random.default_rng(seed)
  unit_B = np.repeat(np.arange(len(units)), units)
  y, z = random.exponential(size=(2, len(unit_B), 3))
  totals = UnitTotals(['y', 'z'])
  edges = [0, *(n for n in np.cumsum(cuts) if n < len(unit_B)), len(unit_B)]
  for a, b in itertools.pairwise(edges):
    totals.add({'y': y[a:b], 'z': z[a:b]}, unit_B[a:b])
  totals.close()
  n = totals.n_units
  assert n == len(units)
  for by, over in (('z', z), ('count', np.ones_like(z))):
    found = totals.divide('y', by)
    ratio = y.sum(0) / over.sum(0)
    np.testing.assert_allclose(found.value, ratio)
    if n == 1:
      assert np.isnan(found.se).all()
      continue
    rest = np.array([(y - ratio * over)[unit_B == u].sum(0) for u in range(n)])
    truth = np.sqrt((rest**2).sum(0) * n / (n - 1)) / over.sum(0)
    np.testing.assert_allclose(found.se, truth, rtol=1e-6, atol=1e-8)


def test_the_error_of_a_mean_over_tokens_is_the_usual_one():
  y = np.random.default_rng(0).standard_normal((50, 2)) + 4
  totals = UnitTotals(['y'])
  totals.add({'y': y}, np.arange(50))
  totals.close()
  found = totals.divide('y')
  np.testing.assert_allclose(found.se, y.std(0, ddof=1) / np.sqrt(50))
  again = Estimates.of_units(y)
  np.testing.assert_allclose(again.value, found.value)
  np.testing.assert_allclose(again.se, found.se)


def test_a_ratio_to_nothing_is_not_a_number():
  totals = UnitTotals(['y', 'z'])
  totals.add({'y': np.ones((4, 1)), 'z': np.zeros((4, 1))}, np.arange(4))
  totals.close()
  assert np.isnan(totals.divide('y', 'z').value).all()


def test_one_unit_has_no_error():
  assert np.isnan(Estimates.of_units(np.ones((1, 3))).se).all()
  with pytest.raises(AssertionError, match='no tokens'):
    UnitTotals(['y']).divide('y')
