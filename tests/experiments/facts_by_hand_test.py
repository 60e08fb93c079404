"""Pairs, halves, errors and paths of the experiment on facts, against small cases written out by hand."""

import numpy as np
import pytest

from experiments.facts import extract, paths
from experiments.facts import names as names_lib
from mechjax.errors import FactsError

pytestmark = pytest.mark.slow


def test_pairs_have_every_order_of_two_classes_and_every_name():
  labels = np.array([0, 0, 0, 1, 1, 2])
  pairs = extract.pair_names(labels, 2, 0)
  assert len(pairs) == 2 * 2 * len(labels)
  assert (labels[pairs[:, 0]] != labels[pairs[:, 1]]).all()
  assert (np.bincount(pairs[:, 0]) == 4).all()
  partners = np.bincount(pairs[:, 1])
  assert partners[labels == 0].max() - partners[labels == 0].min() <= 2
  chosen = extract.spread(pairs, labels, 6)
  assert len({tuple(row) for row in labels[pairs[chosen]]}) == 6


def test_a_half_chooses_a_head_from_its_own_pairs_alone():
  effects = np.array([[-1.0, -1.0, -9.0], [-2.0, -1.5, 9.0], [-50.0, -50.0, -50.0]])
  found = extract.Extraction(
    ['3.0', '3.1', 'MLP 3'], np.array([3, 3, 3]), np.array([0, 1, -1]), np.array([[0, 1], [1, 0], [0, 2]]),
    effects, np.zeros((2, 3)), (np.zeros(0), np.zeros(0), np.zeros((0, 0))),
  )  # fmt: skip
  assert found.head == (3, 0)
  assert found.choose(np.array([0, 1])) == (3, 1)
  with pytest.raises(FactsError, match='no pair has both of its names among these 2'):
    found.choose(np.array([1, 2]))


def test_errors_count_the_names_that_halves_share():
  values = np.random.default_rng(0).normal(size=(10, 4))
  expected = np.sqrt(1 / 10 + 1) * values.std(0, ddof=1)
  np.testing.assert_allclose(names_lib.correct_error(values), expected)
  assert names_lib.correct_error(values).min() > (values.std(0, ddof=1) / np.sqrt(10)).max() / 2
  assert np.isnan(names_lib.correct_error(values[:1])).all()


def test_the_matrix_of_paths_has_a_cell_for_each_pair_in_order():
  rows = [[float(i), 0.1] for i in range(5)]
  found = paths.arrange(rows, [(0, 1), (0, 2), (1, 2)], 3)
  assert found['intact'] == rows[0]
  assert found['effective'] == rows[1]
  assert found['paths'] == [[None, rows[2], rows[3]], [None, None, rows[4]], [None] * 3]
