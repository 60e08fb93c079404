"""Searches without a gradient, by halves and by blocks: their order and their passes, counted by hand."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from mechjax.patching.baselines import blocks, hierarchical
from tests.patching.verify.additive import FEW, Additive, normal


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
