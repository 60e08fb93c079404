"""Bounds for nodes that were met in random subsets only: they hold as often as they state, by simulation."""

import itertools
import math

import numpy as np
import pytest

from mechjax.patching.verify import Subsets, sample_subsets
from tests.patching.verify.additive import additive, normal

ALPHAS = (0.05, 0.3)
RUNS = 200


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
