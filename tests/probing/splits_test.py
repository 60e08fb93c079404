"""Splits and folds hold every class in its proportion, and never a group on both sides."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mechjax.probing import ProbingError, make_folds, split, stack

COUNTS = st.lists(st.integers(3, 15), min_size=2, max_size=4)


def labels_of(counts, seed=0):
  return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


@hypothesis.given(COUNTS, st.sampled_from([0.1, 0.2, 0.3]))
def test_a_split_is_a_partition_with_each_class_in_its_proportion(counts, test):
  labels = labels_of(counts)
  for part in split(labels, test=test, seeds=3):
    both = np.concatenate([part.train, part.test])
    assert sorted(both.tolist()) == list(range(len(labels)))
    held = np.bincount(labels[part.test], minlength=len(counts))
    assert held.min() >= 1
    assert np.abs(held - np.maximum(1, test * np.array(counts))).max() <= 0.5
    assert np.bincount(labels[part.train]).min() >= 2


@hypothesis.given(COUNTS, st.integers(2, 3), st.integers(0, 5))
def test_folds_spread_each_class_and_the_whole_set_evenly(counts, folds, seed):
  labels = labels_of(counts)
  fold = make_folds(labels, folds, seed=seed) if min(counts) >= 2 + folds else None
  hypothesis.assume(fold is not None)
  for members in [labels >= 0, *(labels == c for c in range(len(counts)))]:
    sizes = np.bincount(fold[members], minlength=folds)
    assert sizes.max() - sizes.min() <= 1


def test_a_group_is_on_one_side_only_and_groups_are_held_out_class_by_class():
  names = np.repeat([f'name {i}' for i in range(12)], [3, 1, 4, 2] * 3)
  labels = (np.repeat(np.arange(12), [3, 1, 4, 2] * 3) % 3).astype(str)
  for part in split(labels, groups=names, test=0.5, seeds=4):
    train, test = ({*names[i]} for i in (part.train, part.test))
    assert not train & test
    assert len(train) == len(test) == 6
    assert len(part.train) + len(part.test) == len(names)
    for label in '012':
      assert len({*names[part.test][labels[part.test] == label]}) == 2
  fold = make_folds(labels, 2, groups=names)
  assert all(len({*fold[names == name]}) == 1 for name in names)


def test_seeds_decide_the_split_and_nothing_else_does():
  labels = labels_of([8, 9])
  ten = split(labels)
  assert len(ten) == 10
  (third,) = split(labels, seeds=[2])
  np.testing.assert_array_equal(third.test, ten[2].test)
  assert len({tuple(s.test) for s in ten}) > 5
  assert (make_folds(labels, seed=0) != make_folds(labels, seed=1)).any()
  np.testing.assert_array_equal(make_folds(labels, seed=1), make_folds(labels, seed=1))


def test_stacked_splits_are_index_arrays():
  splits = split(labels_of([8, 9]), seeds=4)
  train, test = stack(splits)
  assert (train.shape, test.shape) == ((4, 13), (4, 4))
  np.testing.assert_array_equal(train[2], splits[2].train)


LABELS = np.arange(9) % 3


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: split([0, 0, 0, 1]), 'the class 1 has 1 member, which leaves 0 in the training part'),
    (lambda: split(['a'] * 5 + ['b'] * 2), "the class 'b' has 2 members, which leaves 1"),
    (lambda: split(LABELS, test=0.6), 'has 3 members, which leaves 1'),
    (lambda: split(LABELS, test=1.0), 'test=1.0; expected a share'),
    (lambda: split(LABELS, test=True), 'test=True; expected a share'),
    (lambda: split(LABELS, seeds=0), 'seeds=0: no splits'),
    (lambda: split(np.zeros(6, int)), 'one class only'),
    (lambda: split(LABELS / 2), 'labels of type float64'),
    (lambda: split(LABELS[None]), r'labels of shape \(1, 9\)'),
    (lambda: split(LABELS, groups=[0, 0, *range(7)]), 'the group 0 has the classes 0 and 1'),
    (lambda: split(LABELS, groups=[0, 1]), r'groups of shape \(2,\)'),
    (lambda: split(LABELS, groups=LABELS), 'the class 0 has 1 member, which leaves 0'),
    (lambda: make_folds(LABELS, 4), '4 folds, and the class 0 has 3 members'),
    (lambda: make_folds([0, 0, 1, 1], 2), 'which leaves 1 in the training part of 2 folds'),
    (lambda: make_folds(LABELS, 1), 'folds=1; expected a whole number of at least 2'),
    (lambda: stack([]), 'there are no splits'),
    (lambda: stack([*split(LABELS, seeds=1), *split([*LABELS, 0, 1, 2], seeds=1)]), 'sizes'),
  ],
)
def test_bad_input_is_refused(call, words):
  with pytest.raises(ProbingError, match=words):
    call()


def test_seeds_are_a_number_of_any_integer_type_or_different_seeds():
  first = split(LABELS, seeds=2)
  for seeds in (np.int64(2), [0, 1], np.arange(2), range(2)):
    again = split(LABELS, seeds=seeds)
    assert [s.test.tolist() for s in again] == [s.test.tolist() for s in first]
  for seeds, words in (
    ([0, 1, 0], 'have one seed twice'),
    (2.5, 'expected a whole number'),
    (True, 'expected a whole number'),
    ([None, 1], 'whole number, at least 0'),
  ):
    with pytest.raises(ProbingError, match=words):
      split(LABELS, seeds=seeds)
