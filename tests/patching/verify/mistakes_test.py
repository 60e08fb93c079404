"""Searches and checks that make no sense: each is refused with the value that is wrong."""

import numpy as np
import pytest

from mechjax.patching import PatchingError
from mechjax.patching.baselines import (
  Search,
  aggregate,
  blocks,
  hierarchical,
  recall,
  recall_cost,
  spearman,
)
from mechjax.patching.verify import count_above, fraction_above, sample_subsets, verify
from tests.patching.verify.additive import Additive

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
