"""Costs of a search and its false negatives: against brute force and by hand."""

import itertools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from mechjax.patching.baselines import (
  Search,
  aggregate,
  false_negatives,
  random_order,
  recall,
  recall_cost,
  spearman,
)
from tests.patching.verify.additive import FEW


@st.composite
def searches(draw, most=8):
  """A search, and a truth with many ties."""
  n = draw(st.integers(1, most))
  steps = draw(hnp.arrays(int, n, elements=st.integers(0, 3)))
  truth = draw(hnp.arrays(float, n, elements=st.integers(0, 4)))
  return Search(np.array(draw(st.permutations(range(n)))), 1 + np.cumsum(steps)), truth


def cheapest(search, truth, k):
  """The first complete one of all sets that can be the top k."""
  best = sorted(truth)[::-1][:k]
  tops = [
    s for s in itertools.combinations(range(len(truth)), k) if sorted(truth[[*s]])[::-1] == best
  ]
  return min(max(search.passes[search.place[i]] for i in s) for s in tops)


@hypothesis.given(searches(7))
@FEW
def test_the_cost_is_when_the_first_complete_top_k_has_been_seen(case):
  search, truth = case
  ks = np.arange(1, len(truth) + 1)
  costs = recall_cost(search, truth)
  assert costs.tolist() == [cheapest(search, truth, k) for k in ks]
  assert recall_cost(search, truth, ks[::-2]).tolist() == costs[::-2].tolist()
  for k in ks:
    assert recall(search, truth, k, costs[k - 1]) == 1
    assert recall(search, truth, k, costs[k - 1] - 0.5) < 1


def test_the_oracle_costs_k_a_perfect_ranking_what_was_spent_more_and_a_reversed_one_everything():
  truth = np.random.default_rng(0).permutation(20).astype(float)
  ks = np.arange(1, 21)
  np.testing.assert_array_equal(recall_cost(Search.by(truth, 0), truth), ks)
  np.testing.assert_array_equal(recall_cost(Search.by(10 + truth**3, 7.5), truth), 7.5 + ks)
  np.testing.assert_array_equal(recall_cost(Search.by(-truth, 3), truth), np.full(20, 23))
  assert recall(Search.by(-truth, 3), truth, 4, 3 + 18) == 0.5


def test_nodes_that_do_nothing_need_not_all_be_seen():
  truth = np.array([0, 0, 5, 0, 0.0])
  search = Search.by([5, 4, 3, 2, 1], 0)
  assert recall_cost(search, truth).tolist() == [3, 3, 3, 4, 5]


def test_a_random_order_costs_what_is_expected_of_it():
  n, runs = 12, 1000
  truth = np.arange(n, dtype=float)
  costs = np.mean([recall_cost(random_order(n, seed), truth) for seed in range(runs)], axis=0)
  ks = np.arange(1, n + 1)
  np.testing.assert_allclose(costs, ks * (n + 1) / (ks + 1), atol=4 * n / math.sqrt(runs) / 3)


def test_costs_are_averaged_over_k_with_inverse_weights():
  assert aggregate(np.array([2.0, 8, 4])) == pytest.approx(
    (2 * 8**0.5 * 4 ** (1 / 3)) ** (1 / (1 + 1 / 2 + 1 / 3))
  )
  assert aggregate(np.array([3.0, 6]), [1, 4]) == pytest.approx(3 ** (4 / 5) * 6 ** (1 / 5))
  assert aggregate(np.full(9, 5.0)) == pytest.approx(5)
  assert aggregate(6 * np.arange(1, 9)) == pytest.approx(6 * aggregate(np.arange(1, 9)))


@hypothesis.given(searches())
@FEW
def test_false_negatives_are_the_top_nodes_that_are_placed_lower(case):
  search, truth = case
  for k in range(1, len(truth) + 1):
    missed = false_negatives(search, truth, k)
    assert len(missed) == k - round(
      k * recall(Search(search.ranking, np.arange(len(truth))), truth, k, k - 1)
    )
    assert [m.place for m in missed] == sorted([m.place for m in missed], reverse=True)
    for m in missed:
      assert m.place > k >= m.rank
      assert search.ranking[m.place - 1] == m.node
      assert (truth > truth[m.node]).sum() < m.rank <= (truth >= truth[m.node]).sum()
      assert (m.contribution, m.passes) == (truth[m.node], search.passes[m.place - 1])


def test_spearman_is_pearson_of_ranks():
  a, b = [1, 2, 2, 4, 9.0], [3, 1, 2, 2, 8.0]
  ranks = [1, 2.5, 2.5, 4, 5], [4, 1, 2.5, 2.5, 5]
  assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
  x, y = (np.random.default_rng(seed).permutation(9) for seed in (0, 1))
  assert spearman(x, y) == pytest.approx(1 - 6 * ((x - y) ** 2).sum() / (9 * 80))
  assert spearman(x, np.exp(x)) == pytest.approx(1)
  assert spearman(x, -x) == pytest.approx(-1)
