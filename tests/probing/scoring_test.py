"""AUC equals the counting of pairs, and accuracies equal their definitions."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mechjax.probing import (
  ProbingError,
  SeedMean,
  accuracy,
  auc,
  balanced_accuracy,
  scoring,
  shuffle_maximum,
)


def count_pairs(values, members):
  """AUC by its definition: pairs of a member and another example, equal values for half."""
  won = [(a > b) + (a == b) / 2 for a in values[members] for b in values[~members]]
  return sum(won) / len(won)


LABELED = st.integers(2, 12).flatmap(
  lambda n: st.tuples(
    st.lists(st.integers(-2, 3), min_size=n, max_size=n),
    st.lists(st.integers(0, 2), min_size=n, max_size=n),
  )
)
"""Values with many ties, and labels."""


@hypothesis.given(LABELED)
def test_the_auc_with_midranks_is_the_count_of_pairs(case):
  values, labels = map(np.array, case)
  hypothesis.assume(len(set(labels)) > 1)
  columns = np.stack([values, -values, values**2], 1) / 3
  found = auc(columns, labels)
  for row, label in zip(found, np.unique(labels)):
    expected = [count_pairs(column, labels == label) for column in columns.T]
    np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)


def test_a_neuron_that_never_fires_has_auc_one_half_though_the_labels_are_sorted():
  columns = np.zeros((9, 2))
  columns[:3, 1] = 1
  assert auc(columns, np.repeat(['a', 'b', 'c'], 3)).tolist() == [
    [0.5, 1.0],
    [0.5, 0.25],
    [0.5, 0.25],
  ]


def test_more_columns_than_a_block_are_ranked_block_by_block(monkeypatch):
  random = np.random.default_rng(0)
  columns, labels = random.integers(0, 4, (15, 23)), random.integers(0, 2, 15)
  whole = auc(columns, labels)
  monkeypatch.setattr(scoring, 'BLOCK', 7)
  np.testing.assert_array_equal(auc(columns, labels), whole)
  assert whole.shape == (2, 23)
  np.testing.assert_allclose(whole.sum(0), 1)


def test_accuracies_follow_their_definitions():
  labels = np.array(['a'] * 6 + ['b'] * 2)
  always = np.array(['a'] * 8)
  one_b = np.array(['a'] * 5 + ['b', 'b', 'a'])
  predicted = np.stack([always, one_b, labels])
  assert accuracy(labels, predicted).tolist() == [6 / 8, 6 / 8, 1]
  np.testing.assert_allclose(balanced_accuracy(labels, predicted), [1 / 2, (5 / 6 + 1 / 2) / 2, 1])
  assert balanced_accuracy(labels[:6], predicted[1, :6]) == 5 / 6


def test_each_problem_counts_its_own_classes():
  labels = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
  predicted = np.array([[0, 1, 1, 1], [2, 0, 1, 2]])
  assert balanced_accuracy(labels, predicted).tolist() == [0.75, 0.5]


def test_a_mean_over_seeds_has_the_error_of_independent_splits_and_that_of_new_examples():
  found = SeedMean.of(np.array([0.8, 0.9, 1.0, 0.9]))
  deviation = math.sqrt(2 * 0.01 / 3)
  np.testing.assert_allclose((found.mean, found.deviation), (0.9, deviation))
  np.testing.assert_allclose(found.standard_error, deviation / 2)
  np.testing.assert_allclose(
    found.error_for_new_examples(48, 12), deviation * math.sqrt(1 / 4 + 1 / 4)
  )
  assert str(found) == '0.900 ± 0.041'


# --- the largest AUC by chance ----------------------------------------------------------------------------


@pytest.mark.parametrize('two_sided', [False, True])
def test_the_null_is_the_largest_auc_of_the_same_columns_with_shuffled_labels(two_sided):
  random = np.random.default_rng(1)
  columns, labels = random.integers(0, 5, (20, 30)), random.integers(0, 3, 20)
  null = shuffle_maximum(columns, labels, shuffles=12, two_sided=two_sided, seed=4)
  again = np.random.default_rng(4)
  for row in null.maxima:
    areas = auc(columns, again.permutation(labels))
    np.testing.assert_allclose(row, np.maximum(areas, 1 - areas if two_sided else 0).max(1))
  largest = null.maxima.max(1)
  assert null.median == np.median(largest)
  assert null.quantile(0.95) == np.quantile(largest, 0.95)
  assert null.p_value(1.0) == 1 / 13
  assert null.p_value(largest[3]) == (1 + (largest >= largest[3]).sum()) / 13


def test_the_best_of_many_columns_of_noise_is_large_and_no_more_than_its_null():
  random = np.random.default_rng(2)
  columns, labels = random.standard_normal((40, 2000)), np.arange(40) % 2
  null = shuffle_maximum(columns, labels, shuffles=100)
  best = auc(columns, labels).max()
  assert 0.75 < null.median < null.quantile(0.95) < 0.95
  assert null.p_value(best) > 0.01
  columns[:, 7] = labels
  assert null.p_value(auc(columns, labels).max()) == 1 / 101


def test_members_of_a_group_keep_a_common_label_in_all_shuffles():
  groups = np.repeat(np.arange(6), 4)
  labels = np.array([0, 0, 0, 1, 1, 1])[groups]
  columns = np.stack([(groups == g).astype(float) for g in range(6)], 1)
  grouped = shuffle_maximum(columns, labels, shuffles=20, groups=groups)
  np.testing.assert_allclose(grouped.maxima, 2 / 3)  # the group is always whole
  assert shuffle_maximum(columns, labels, shuffles=20).maxima.min() < 2 / 3


def test_shuffles_in_several_products_are_those_in_one(monkeypatch):
  columns, labels = np.random.default_rng(3).standard_normal((10, 50)), np.arange(10) % 2
  whole = shuffle_maximum(columns, labels, shuffles=9).maxima
  monkeypatch.setattr('mechjax.probing.chance.BLOCK_NUMBERS', 2 * 50 * 4)
  np.testing.assert_array_equal(shuffle_maximum(columns, labels, shuffles=9).maxima, whole)


# --- errors -----------------------------------------------------------------------------------------------

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: auc(np.full((6, 2), np.nan), Y), 'columns contain NaN'),
    (lambda: auc(X[:5], Y), r'labels of shape \(6,\) for 5 examples'),
    (lambda: auc(X, Y / 2), 'labels of type float64'),
    (lambda: auc(X, 0 * Y), 'one class only'),
    (lambda: auc(X[None], Y), r'columns of shape \(1, 6, 2\)'),
    (lambda: auc(X, np.stack([Y, Y])), r'expected \[B, columns\] and \[B\]'),
    (lambda: accuracy(Y, Y[:3]), '6 labels and 3 predictions'),
    (lambda: accuracy(Y, Y.astype(str)), 'classes of one type'),
    (lambda: accuracy(Y, Y.astype(float)), 'classes of one type'),
    (lambda: accuracy(Y[:0], Y[:0]), 'classes of one type'),
    (lambda: balanced_accuracy(np.stack([Y] * 2), np.stack([Y] * 3)), r'\(2, 6\) and predictions'),
    (lambda: SeedMean.of(np.array([0.5])), 'two splits or more'),
    (lambda: SeedMean.of(np.array([0.5, np.nan])), 'two splits or more'),
    (lambda: SeedMean.of(np.array([0.5, 0.6])).error_for_new_examples(0, 3), '0 and 3 examples'),
    (lambda: shuffle_maximum(X, Y, shuffles=0), 'shuffles=0'),
    (lambda: shuffle_maximum(X[:5], Y), '6 labels'),
    (
      lambda: shuffle_maximum(X, Y, groups=[0, 0, 0, 1, 1, 1]),
      'the group 0 has the classes 0 and 1',
    ),
    (lambda: shuffle_maximum(X, Y, shuffles=2).quantile(95), 'share=95'),
  ],
)
def test_bad_input_is_refused(call, words):
  with pytest.raises(ProbingError, match=words):
    call()


@pytest.mark.parametrize('found', [float('nan'), 87.0, -0.1, np.array([0.5, 0.6]), None])
def test_a_p_value_of_something_else_than_an_auc_is_refused(found):
  random = np.random.default_rng(1)
  null = shuffle_maximum(random.standard_normal((12, 3)), np.arange(12) % 2, shuffles=3)
  with pytest.raises(ProbingError, match='expected one AUC, from 0 to 1'):
    null.p_value(found)


def test_classes_of_different_kinds_are_not_all_wrong_but_refused():
  texts = np.array(['a', 'b', 'a'])
  with pytest.raises(ProbingError, match='classes of one type'):
    accuracy(texts.astype('S'), texts)
  with pytest.raises(ProbingError, match='labels of several kinds: texts, float'):
    accuracy(['a', float('nan')], ['a', 'nan'])
  assert accuracy(texts.astype(object), texts) == 1
