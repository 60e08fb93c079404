"""Cross-validation equals a plain loop over folds, penalties and problems."""

import numpy as np
import pytest

from mechjax.probing import (
  PenaltyChoice,
  ProbingError,
  choose_l2,
  fit_logistic,
  make_folds,
  split,
  stack,
)
from tests.probing.examples import examples

CANDIDATES = (0.01, 1.0, 100.0)


def plain_losses(x, y, fold, **options):
  """Mean held-out loss of each candidate."""
  losses = []
  for l2 in CANDIDATES:
    total = 0.0
    for number in np.unique(fold):
      inside = fold == number
      probe = fit_logistic(x[~inside], y[~inside], l2, **options)
      p = probe.probabilities(x[inside])
      total -= np.log(p[np.arange(inside.sum()), y[inside]]).sum()
    losses.append(total / len(y))
  return np.array(losses)


@pytest.mark.parametrize('options', [{}, {'standardise': True}, {'fit_intercept': False}])
def test_losses_are_those_of_a_loop_over_folds(options):
  x, y = examples(30, 40, C=3, shift=0.5)
  choice = choose_l2(x, y, CANDIDATES, 5, seed=3, **options)
  expected = plain_losses(x, y, make_folds(y, 5, seed=3), **options)
  np.testing.assert_allclose(choice.losses, expected, rtol=1e-5)
  assert choice.l2 == CANDIDATES[expected.argmin()]


def test_layers_with_one_labeling_share_its_folds():
  x = np.stack([examples(24, 10, seed=s, shift=0.3)[0] for s in range(3)])
  y = examples(24, seed=7)[1]
  fold = np.arange(24) % 4
  choice = choose_l2(x, y, CANDIDATES, fold)
  assert choice.losses.shape == (3, 3)
  for i in range(3):
    np.testing.assert_allclose(choice.losses[i], plain_losses(x[i], y, fold), rtol=1e-5)


def test_labelings_of_the_same_features_share_folds_with_every_combination_spread():
  x, first = examples(32, 6, C=2)
  second = np.roll(first, 3)
  choice = choose_l2(x, np.stack([first, second]), CANDIDATES, 3)
  fold = make_folds(2 * first + second, 3)
  for i, y in enumerate((first, second)):
    np.testing.assert_allclose(choice.losses[i], plain_losses(x, y, fold), rtol=1e-5)


def test_training_parts_of_several_splits_have_their_own_folds():
  x, y = examples(40, 6, C=2)
  train, _ = stack(split(y, seeds=3))
  choice = choose_l2(x[train], y[train], CANDIDATES, 4)
  for i, rows in enumerate(train):
    expected = plain_losses(x[rows], y[rows], make_folds(y[rows], 4))
    np.testing.assert_allclose(choice.losses[i], expected, rtol=1e-5)


def test_of_equal_losses_the_larger_penalty_is_chosen_and_ends_are_marked():
  losses = np.array([[2.0, 1.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0], [0.5, 1.0, 2.0, 3.0]])
  choice = PenaltyChoice.of(np.array([1.0, 2.0, 3.0, 4.0]), losses)
  assert choice.l2.tolist() == [3.0, 4.0, 1.0]
  assert choice.at_edge.tolist() == [False, True, True]


X, Y = examples(12, 4, C=3)
FOLD = make_folds(Y, 2)
UNEVEN = np.where(np.arange(12) == np.flatnonzero(FOLD == 0)[0], 1, FOLD)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: choose_l2(X, Y, folds=5), '5 folds, and the class 0 has 4 members'),
    (lambda: choose_l2(X, Y, folds=1), 'folds=1'),
    (lambda: choose_l2(X, Y, folds=2.0), 'folds=2.0'),
    (lambda: choose_l2(X, Y, folds=np.zeros(12, int)), r'folds of shape \(12,\)'),
    (lambda: choose_l2(X, Y, folds=np.arange(11) % 3), r'folds of shape \(11,\)'),
    (lambda: choose_l2(X, Y, folds=Y), 'the class 0 has 0 members outside of fold 0'),
    (lambda: choose_l2(X, Y, [1.0]), 'two different penalties'),
    (lambda: choose_l2(X, Y, [0.0, 1.0]), 'expected finite numbers over 0'),
    (lambda: choose_l2(X, Y / 2), 'labels of type float64'),
    (lambda: choose_l2(X[:5], Y), 'for 5 examples'),
    (
      lambda: choose_l2(np.stack([X, X]), np.stack([Y, Y]), CANDIDATES, np.stack([FOLD, UNEVEN])),
      'fold 0 has 5 examples in one problem and 6 in another',
    ),
    (
      lambda: choose_l2(X, np.stack([Y, Y]), CANDIDATES, np.stack([FOLD, UNEVEN])),
      'folds of shape',
    ),
  ],
)
def test_bad_input_is_refused(call, words):
  with pytest.raises(ProbingError, match=words):
    call()
