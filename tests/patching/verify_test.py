"""Searches and the nodes they missed: against brute force, counting by hand, enumeration and simulation."""

import itertools
import math

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from mechjax.patching import PatchingError
from mechjax.patching.baselines import (
  Search,
  aggregate,
  blocks,
  false_negatives,
  hierarchical,
  random_order,
  recall,
  recall_cost,
  spearman,
)
from mechjax.patching.verify import (
  Subsets,
  count_above,
  fraction_above,
  sample_subsets,
  verify,
)

FEW = hypothesis.settings(max_examples=40, deadline=None)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


class Additive:
  """A set of nodes has the sum of their effects [N, B], and noise; `members` keeps what was patched."""

  def __init__(self, effects, noise=0.0, seed=0):
    self.effects, self.noise = np.asarray(effects, float).reshape(len(effects), -1), noise
    self.members, self.returned = [], []
    self.random = np.random.default_rng(seed)

  def __call__(self, members):
    assert members.dtype == bool
    assert members.shape[1] == len(self.effects)
    sums = members @ self.effects
    self.members += list(members)
    self.returned += list(sums + self.noise * self.random.standard_normal(sums.shape))
    return np.array(self.returned[-len(members) :])


# --- costs of a search ----------------------------------------------------------------------------------------


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


# --- searches without a gradient -----------------------------------------------------------------------------


def test_halving_counts_passes_as_by_hand():
  """[0 1 | 2 3 4]: 1 and 6; [2 | 3 4]: 4 and 2, then [3 | 4], and at last [0 | 1]."""
  patch = Additive([1, 0, 4, 0, 2])
  search = hierarchical(patch, 5)
  assert search.ranking.tolist() == [2, 3, 4, 0, 1]
  assert search.passes.tolist() == [3, 5, 6, 7, 8]
  assert [np.flatnonzero(m).tolist() for m in patch.members] == [
    [0, 1], [2, 3, 4], [2], [3, 4], [3], [4], [0], [1]
  ]  # fmt: skip


def test_halving_may_stop_and_walk():
  search = hierarchical(Additive([1, 0, 4, 0, 2]), 5, joint=3)
  assert search.ranking.tolist() == [2, 3, 4, 0, 1]
  assert search.passes.tolist() == [3, 5, 6, 7, 8]
  search = hierarchical(Additive([3, 0, 0, 0, 2]), 5, joint=2)  # [0 1] before [2 3 4]
  assert (search.ranking.tolist(), search.passes.tolist()) == ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7])


def test_blocks_count_passes_as_by_hand():
  """[0 1]: 1, [2 3]: 3, [4]: 2 and measured with the blocks."""
  search = blocks(Additive([1, 0, 0, -3, 2]), 5, 2, batch=2)
  assert search.ranking.tolist() == [2, 3, 4, 0, 1]
  assert search.passes.tolist() == [4, 5, 5, 6, 7]
  assert blocks(Additive([1, 2, 3]), 3, 1).passes.tolist() == [3, 3, 3]


def test_the_absolute_value_is_taken_for_each_pair():
  patch = Additive([[2, -2], [0, 0], [1, 0.5], [0, 0]])
  assert blocks(patch, 4, 2).ranking[:2].tolist() == [0, 1]
  assert hierarchical(patch, 4).ranking[:2].tolist() == [0, 1]


@hypothesis.given(
  st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(1, 60), st.integers(0, 99)
)
@FEW
def test_every_node_is_measured_once_and_every_pass_is_counted(n, size, joint, seed):
  effects = normal(n, 2, seed=seed)
  patch = Additive(effects)
  halved = hierarchical(patch, n, joint=joint, at_once=size)
  singles = {int(m.argmax()): i + 1 for i, m in enumerate(patch.members) if m.sum() == 1}
  made = len(patch.members)
  passes = dict(zip(halved.ranking.tolist(), halved.passes))
  assert {node: passes[node] for node in singles} == singles
  left = [passes[node] for node in halved.ranking.tolist() if node not in singles]
  assert left == list(range(made + 1, made + 1 + n - len(singles)))
  assert made == max(1, 2 * n - 2) if joint is None else made < joint + 2 * size
  patch = Additive(effects)
  walked = blocks(patch, n, size, batch=3)
  assert len(patch.members) == -(-n // size)
  already = sum(m.sum() == 1 for m in patch.members)
  assert walked.passes[-1] == len(patch.members) + n - already
  assert set(halved.ranking) == set(walked.ranking) == set(range(n))  # and `Search` forbids doubles


# --- random subsets ------------------------------------------------------------------------------------------


def test_effects_and_errors_are_those_of_two_samples():
  patch = Additive(normal(7, 3) + 50, noise=0.3)
  nodes = np.array([6, 0, 3, 4])
  sampled = sample_subsets(patch, 7, nodes, subsets=30, p=0.3, batch=7)
  members, effects = np.array(patch.members), np.array(patch.returned)
  assert len(members) == sampled.count == 30
  assert not members[:, [1, 2, 5]].any()
  for i, node in enumerate(nodes):
    held, free = effects[members[:, node]], effects[~members[:, node]]
    assert len(held) == sampled.inside == 9
    np.testing.assert_allclose(sampled.effects[i], held.mean(0) - free.mean(0), rtol=1e-10)
    welch = held.var(0, ddof=1) / 9 + free.var(0, ddof=1) / 21
    pooled = (8 * held.var(0, ddof=1) + 20 * free.var(0, ddof=1)) / 28 * (1 / 9 + 1 / 21)
    np.testing.assert_allclose(sampled.errors[i] ** 2, np.maximum(welch, pooled), rtol=1e-9)


def test_subsets_are_drawn_evenly_and_nodes_without_regard_to_each_other():
  patch = Additive(np.zeros(3))
  for seed in range(300):
    sample_subsets(patch, 3, subsets=8, p=0.5, seed=seed)
  members = np.array(patch.members).reshape(300, 8, 3)
  assert (members.sum(1) == 4).all()
  np.testing.assert_allclose(members.mean(0), 0.5, atol=4 * 0.5 / math.sqrt(300))
  for i, j in itertools.combinations(range(3), 2):
    both = (members[..., i] & members[..., j]).mean()
    assert abs(both - 0.25) < 4 * 0.25 / math.sqrt(2400)


def test_subsampling_recovers_additive_effects():
  effects = normal(30, 4) * np.linspace(0.2, 3, 30)[:, None]
  sampled = sample_subsets(additive(effects), 30, subsets=4000, p=0.5)
  np.testing.assert_allclose(sampled.effects, effects, atol=5 * sampled.errors.max())
  assert spearman(sampled.contribution(), np.abs(effects).mean(1)) > 0.98
  search = sampled.search()
  assert search.passes.tolist() == (4000 + np.arange(1, 31)).tolist()
  assert search.ranking[0] == np.abs(effects).mean(1).argmax()


def test_contributions_are_means_over_the_pairs_that_have_the_node():
  there = np.ones((12, 4), bool)
  there[3, 1:] = there[7, :2] = False
  effects = np.where(there, normal(12, 4), 0)
  effects[3, 0] = 2.5
  expected = np.array([np.abs(e[t]).mean() for e, t in zip(effects, there)])
  patch = additive(effects)
  patch.there = there
  found = verify(Search.by(expected, 0), patch, 5, 12)
  assert found.top.tolist() == np.argsort(-expected)[:5].tolist()
  np.testing.assert_allclose(found.threshold, np.sort(expected)[-5])
  sampled = sample_subsets(patch, 12, np.arange(2, 12), subsets=4000, p=0.5)
  np.testing.assert_allclose(sampled.contribution(), expected[2:], atol=5 * sampled.errors.max())
  assert (sampled.upper_bounds() > expected[2:]).all()
  ordered = blocks(patch, 12, 1)
  assert ordered.ranking.tolist() == np.argsort(-expected).tolist()


@pytest.mark.parametrize('p', [0.1, 0.3, 0.5])
def test_the_variance_of_an_additive_effect_does_not_depend_on_p(p):
  effects = normal(20)
  found = [
    sample_subsets(additive(effects), 20, subsets=40, p=p, seed=s).effects[0, 0] for s in range(300)
  ]
  others = (effects[1:] ** 2).sum()
  np.testing.assert_allclose(np.var(found), others / 40, rtol=4 * math.sqrt(2 / 300))


ALPHAS = (0.05, 0.3)
RUNS = 200


def additive(effects, noise=0.0):
  """Like `Additive`, without memory of calls."""
  random = np.random.default_rng(0)
  effects = effects.reshape(len(effects), -1)
  return lambda members: (
    members @ effects + noise * random.standard_normal((len(members), effects.shape[1]))
  )


def coverage(patch, truth, **options):
  """Share of runs in which the bounds hold for each alpha: [largest contribution, first node's own]; and the slack."""
  held, slack = np.zeros((2, len(ALPHAS))), 0.0
  for seed in range(RUNS):
    sampled = sample_subsets(patch, len(truth), seed=seed, **options)
    held[0] += [sampled.bound(alpha) >= truth.max() for alpha in ALPHAS]
    held[1] += [sampled.upper_bounds(alpha)[0] >= truth[0] for alpha in ALPHAS]
    slack += sampled.bound() / truth.max() / RUNS
  return held / RUNS, slack


LEAST = np.array([1 - alpha - 3 * math.sqrt(alpha * (1 - alpha) / RUNS) for alpha in ALPHAS])
MOST = np.array([1 - alpha + 3 * math.sqrt(alpha * (1 - alpha) / RUNS) for alpha in ALPHAS])


@pytest.mark.parametrize(('p', 'noise'), [(0.5, 0.0), (0.15, 0.0), (0.5, 2.0)])
def test_the_bound_holds_for_additive_effects(p, noise):
  effects = normal(12, 3, seed=1)
  held, slack = coverage(additive(effects, noise), np.abs(effects).mean(1), subsets=40, p=p)
  assert (held >= LEAST).all()
  assert slack < 4


def test_the_bound_is_as_tight_as_it_says_for_one_pair_and_one_large_node():
  effects = np.array([6.0] + [0.5] * 19)
  held, _ = coverage(additive(effects), effects, subsets=60, p=0.5)
  assert (held >= LEAST).all()
  assert (held <= MOST).all()


@pytest.mark.parametrize('sign', [1, -1])
def test_the_bound_holds_where_a_large_companion_is_seldom_met(sign):
  """No subset holds both nodes in a third of the draws, and the variance of those with the first is then 0."""
  effects = np.array([1.0, sign])
  held, _ = coverage(additive(effects), np.abs(effects), subsets=100, p=0.1)
  assert (held >= LEAST).all()


def test_pairs_that_move_together_cost_no_coverage():
  effects = np.array([1.0] + [0.6, -0.6] * 8)[:, None] * np.ones((1, 5))
  held, _ = coverage(additive(effects), np.abs(effects[:, 0]), subsets=60, p=0.5)
  assert (held >= LEAST).all()
  assert (held[1] <= MOST).all()


@pytest.mark.parametrize('p', [0.5, 0.2])
def test_with_interactions_the_bound_holds_for_the_effect_in_company(p):
  """All subsets of 8 nodes, weighed by their probability, give the mean effect of each in company."""
  n, pairs = 8, 2
  linear, quadratic = normal(n, pairs, seed=2), normal(n, n * pairs, seed=3)

  def value(members):
    m = members.astype(float)
    products = (m @ quadratic).reshape(len(m), n, pairs)
    return np.tanh(m @ linear + (m[..., None] * products).sum(1) / 2)

  everything = np.array(list(itertools.product([False, True], repeat=n)))
  values = value(everything)
  weights = p ** everything.sum(1) * (1 - p) ** (~everything).sum(1)
  truth = []
  for held in everything.T:
    with_it = np.average(values[held], 0, weights[held])
    truth.append(np.abs(with_it - np.average(values[~held], 0, weights[~held])).mean())
  held, _ = coverage(value, np.array(truth), subsets=50, p=p)
  assert (held >= LEAST).all()


@pytest.mark.parametrize('alpha', [1e-6, 0.05, 0.4])
def test_bounds_and_p_values_are_two_sides_of_one_statement(alpha):
  sampled = sample_subsets(additive(normal(9, 3)), 9, subsets=30, p=0.5)
  one_by_one = [sampled.p_values(upper)[i] for i, upper in enumerate(sampled.upper_bounds(alpha))]
  assert one_by_one == pytest.approx([alpha] * 9, rel=1e-9)
  assert sampled.p_value(sampled.bound(alpha)) == pytest.approx(alpha, rel=1e-9)


def test_suspects_hold_every_large_node():
  effects = np.array([3.0, -3, 3] + [0.1] * 17)
  lost = 0
  for seed in range(40):
    sampled = sample_subsets(additive(effects), 20, subsets=80, p=0.5, seed=seed)
    suspects = sampled.suspects(2.9, 0.2)
    lost += not {0, 1, 2} <= set(suspects.tolist())
    assert len(suspects) < 20
  assert lost / 40 <= 0.2


def test_effects_without_error_are_their_own_bound():
  flat = Subsets(np.arange(2), np.array([[1.0, -3], [0, 0]]), np.zeros((2, 2)), 5, 10)
  assert (flat.upper_bounds() == [2, 0]).all()
  assert (flat.p_values(1.5) == [1, 0]).all()
  assert flat.p_value(2.5) == 0


# --- random checks -------------------------------------------------------------------------------------------


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


# --- both ----------------------------------------------------------------------------------------------------


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


# --- Student's t ---------------------------------------------------------------------------------------------


def with_freedom(freedom):
  """One node of effect 0 and standard error 1, whose bound is the quantile itself."""
  count = 2 * (int(freedom) + 1)
  return Subsets(np.arange(1), np.zeros((1, 1)), np.ones((1, 1)), count // 2, count)


@pytest.mark.parametrize(
  ('alpha', 'freedom', 'published'),
  [
    (0.025, 1, 12.706),
    (0.025, 5, 2.571),
    (0.05, 10, 1.812),
    (0.01, 20, 2.528),
    (0.005, 30, 2.750),
    (0.0005, 60, 3.460),
    (0.05, 120, 1.658),
    (0.025, 1e9, 1.960),
  ],
)
def test_quantiles_are_those_of_the_tables(alpha, freedom, published):
  assert round(with_freedom(freedom).bound(alpha), 3) == published


@pytest.mark.parametrize('alpha', [0.45, 0.1, 1e-3, 1e-9])
def test_one_and_two_degrees_of_freedom_have_a_formula(alpha):
  one = 1 / math.tan(math.pi * alpha)
  assert with_freedom(1).bound(alpha) == pytest.approx(one, rel=1e-9)
  two = (1 - 2 * alpha) / math.sqrt(2 * alpha * (1 - alpha))
  assert with_freedom(2).bound(alpha) == pytest.approx(two, rel=1e-9)
  np.testing.assert_allclose(with_freedom(2).p_values(two), alpha, rtol=1e-9)


# --- errors --------------------------------------------------------------------------------------------------

THREE = Search.by([1, 2, 3], 0)
ADDITIVE = Additive(np.ones(3))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: Search(np.array([], int), np.array([])), 'no nodes'),
    (lambda: Search([0, 0, 2], [1, 2, 3]), r'3 nodes does not name each of 0 ... 2 once'),
    (lambda: Search([0, 1, 2], [1, 2]), r'shape \(2,\), the ranking has 3'),
    (lambda: Search([0, 1, 2], [1, 3, 2]), r'passes\[2\] is 2'),
    (lambda: Search([0, 1, 2], [1, np.nan, 2]), r'passes\[1\] is nan'),
    (lambda: Search.by([1, np.nan], 0), r'scores\[1\] is nan'),
    (lambda: Search.by(np.ones((3, 2)), 0), r'shape \(3, 2\), not one number'),
    (lambda: recall_cost(THREE, [1, 2]), 'truth of 2 nodes for a search of 3'),
    (lambda: recall_cost(THREE, [1, 2, np.nan]), r'truth\[2\] is nan'),
    (lambda: recall_cost(THREE, [1, 2, 3], [0, 1]), r'K \[0, 1\] of 3 nodes'),
    (lambda: recall(THREE, [1, 2, 3], 4, 9), r'K \[4\] of 3'),
    (lambda: aggregate(np.ones(3), [1, 2]), '3 costs for 2 K'),
    (lambda: aggregate(np.array([0.0, 1])), 'smallest cost is 0.0'),
    (lambda: spearman([1, 2], [1, 2, 3]), '2 values and 3 values'),
    (lambda: spearman([1, 2], [1, 1]), 'all 2 values of b are equal'),
    (lambda: blocks(ADDITIVE, 3, 0), 'size is 0'),
    (lambda: hierarchical(ADDITIVE, 3, joint=0), 'joint is 0'),
    (lambda: blocks(lambda m: np.ones(len(m)), 3, 2), r'2 sets gave effects of shape \(2,\)'),
    (lambda: blocks(lambda m: np.full((2, 4), np.nan), 3, 2), r'is nan\n.*pair 0, nodes \[0, 1\]'),
    (lambda: sample_subsets(ADDITIVE, 3, subsets=100, p=1.0), 'p=1.0 a node is in 0 of 100'),
    (lambda: sample_subsets(ADDITIVE, 3, subsets=10, p=0.1), 'p=0.1 a node is in 1 of 10'),
    (lambda: sample_subsets(ADDITIVE, 3, np.array([], int), subsets=10), 'no nodes'),
    (lambda: sample_subsets(ADDITIVE, 3, [0, 2], subsets=10, p=0.5).search(), 'does not name'),
    (lambda: fraction_above(3, 2), '3 found in 2 checked of 2'),
    (lambda: fraction_above(0, 10, 95), 'alpha is 95'),
    (lambda: count_above(0, 11, 10), '0 found in 11 checked of 10'),
    (lambda: verify(THREE, ADDITIVE, 3, 2), 'budget of 2 passes measures 2 nodes, and the top 3'),
    (lambda: verify(THREE, ADDITIVE, 1, 2, checks=2), '2 checks among the 1 nodes'),
    (lambda: verify(THREE, ADDITIVE, 1, 2, alpha=0.95), 'alpha is 0.95.*0.5\n.*a confidence'),
    (lambda: verify(THREE, ADDITIVE, 1, 2, measured=np.ones((2, 1))), r'\(2, 1\), the search has 3'),
    (lambda: verify(THREE, ADDITIVE, 1, 2, measured=np.full((3, 2), np.nan)), '1 pairs, and .* 2'),
  ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(call, message):
  with pytest.raises(PatchingError, match=message):
    call()
