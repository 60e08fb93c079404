"""Effects of single nodes, estimated from random subsets: against formulas and simulation."""

import itertools
import math

import numpy as np
import pytest

from mechjax.patching.baselines import Search, blocks, spearman
from mechjax.patching.verify import sample_subsets, verify
from tests.patching.verify.additive import Additive, additive, normal


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
