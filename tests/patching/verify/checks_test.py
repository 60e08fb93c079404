"""Random checks of nodes that a search left out: exact by enumeration, alone and after a search."""

import itertools
import math

import numpy as np
import pytest

from mechjax.patching.baselines import Search, random_order
from mechjax.patching.verify import count_above, fraction_above, verify
from tests.patching.verify.additive import Additive, normal


def test_the_count_is_exact_by_enumeration():
  """The bound is too low with at most alpha for each population, and a bound lower by one is not."""
  for total, checked, alpha in itertools.product((1, 4, 7), (0, 1, 3, 4), (0.05, 0.21, 0.5)):
    if checked > total:
      continue
    bounds = [count_above(x, checked, total, alpha) for x in range(checked + 1)]
    assert bounds == sorted(bounds)
    found = {
      count: [
        len(set(s) & set(range(count))) for s in itertools.combinations(range(total), checked)
      ]
      for count in range(total + 1)
    }
    for count, xs in found.items():
      assert np.mean([bounds[x] < count for x in xs]) <= alpha
    for x, bound in enumerate(bounds):
      assert np.mean([y <= x for y in found[bound]]) > alpha
      if bound < total - checked + x:
        assert np.mean([y <= x for y in found[bound + 1]]) <= alpha


def test_the_fraction_is_exact_by_the_binomial_distribution():
  def at_most(x, m, p):
    return sum(math.comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(x + 1))

  for m, alpha in itertools.product((1, 5, 60), (0.01, 0.05, 0.5)):
    assert fraction_above(0, m, alpha) == pytest.approx(1 - alpha ** (1 / m), rel=1e-9)
    assert fraction_above(m, m, alpha) == 1
    for x in range(0, m, 29):
      assert at_most(x, m, fraction_above(x, m, alpha)) == pytest.approx(alpha, rel=1e-8)


def test_a_small_population_needs_no_more_than_a_large_one():
  assert count_above(0, 5, 5) == 0
  assert count_above(2, 5, 5) == 2
  assert count_above(0, 0, 9) == 9
  for found in (0, 3):
    of_many = count_above(found, 100, 10**6) / 10**6
    assert of_many == pytest.approx(fraction_above(found, 100), rel=1e-3)
    assert count_above(found, 100, 400) / 400 < of_many


def test_a_search_is_followed_and_the_rest_is_bounded():
  effects = normal(60, 3) * np.r_[np.full(10, 5.0), np.full(50, 0.1)][:, None]
  truth = np.abs(effects).mean(1)
  patch = Additive(effects)
  result = verify(Search.by(truth, 3), patch, 6, 23, checks=10, subsets=100, p=0.5)
  assert np.isnan(result.effects[:, 0]).sum() == 60 - 20 - 10
  known = ~np.isnan(result.effects[:, 0])
  np.testing.assert_array_equal(result.effects[known], effects[known])
  np.testing.assert_array_equal(result.top, np.argsort(-truth)[:6])
  assert result.threshold == truth[result.top[-1]]
  assert (result.found, result.missed) == (0, count_above(0, 10, 40))
  assert truth[~known].max() <= result.bound < result.threshold
  assert set(result.subsets.nodes) == set(np.flatnonzero(~known))
  assert result.spent == 3 + len(patch.members) == 3 + 20 + 10 + 100


def test_a_random_check_can_find_what_the_search_missed():
  truth = np.arange(30.0)
  result = verify(Search.by(-truth, 0), Additive(truth), 2, 10, checks=12)
  assert result.found == 12
  assert result.missed == count_above(12, 12, 20) - 12 == 8
  assert result.top.tolist() == sorted(result.checked, reverse=True)[:2]
  assert result.bound is None
  assert result.threshold == 8


def test_what_was_measured_is_not_measured_again():
  effects = normal(20, 2)
  search = random_order(20)
  measured = np.full((20, 2), np.nan)
  measured[:8] = effects[:8]

  class Interrupted(Additive):
    def __call__(self, members):
      if len(self.members) == 6:
        raise KeyboardInterrupt
      return super().__call__(members)

  with pytest.raises(KeyboardInterrupt):
    verify(search, Interrupted(effects), 3, 15, measured=measured, checks=2, batch=3)
  assert (~np.isnan(measured[:, 0])).sum() == 14
  patch = Additive(effects)
  again = verify(search, patch, 3, 15, measured=measured, checks=2, batch=3)
  known = ~np.isnan(again.effects[:, 0])
  assert len(patch.members) == known.sum() - 14
  plain = verify(search, Additive(effects), 3, 15, checks=2)
  for name in ('threshold', 'found', 'missed', 'spent'):
    assert getattr(again, name) == getattr(plain, name)
  np.testing.assert_array_equal(again.checked, plain.checked)


def test_where_everything_was_measured_nothing_is_missed():
  effects = normal(9)
  result = verify(random_order(9), Additive(effects), 9, 9, subsets=10, p=0.5)
  assert (result.missed, result.bound, result.spent) == (0, 0.0, 9)
  np.testing.assert_array_equal(result.top, np.argsort(-np.abs(effects)))
