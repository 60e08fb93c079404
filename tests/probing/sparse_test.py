"""Sparse probes find planted columns on the training part alone, in any basis."""

import functools

import numpy as np
import pytest

from mechjax.probing import (
  ProbingError,
  Split,
  accuracy,
  auc,
  fit_logistic,
  fit_sparse,
  fit_sparse_curve,
  principal_directions,
  probe_basis,
  random_directions,
  split,
)
from mechjax.steering import draw_directions


def planted(n=90, columns=30, seed=0):
  """Classes 0, 1, 2: column 11 fires for class 1, column 5, of a small scale, against class 2, the others are noise."""
  random = np.random.default_rng(seed)
  y = random.permutation(np.arange(n) % 3)
  x = random.standard_normal((n, columns))
  x[:, 11] = 3 * (y == 1) + 0.1 * random.standard_normal(n)
  x[:, 5] = 1e-3 * ((y != 2) + 0.1 * random.standard_normal(n))
  return x, y


@pytest.mark.parametrize(('criterion', 'second'), [('auc', True), ('mean_difference', False)])
def test_the_planted_columns_are_chosen_by_a_criterion_that_sees_them(criterion, second):
  x, y = planted()
  probe = fit_sparse(x, y, 2, criterion=criterion)
  assert (11 in probe.columns, 5 in probe.columns) == (True, second)
  assert (accuracy(y, probe.predict(x)) == 1) == second


def test_a_sparse_probe_is_the_logistic_probe_of_its_columns():
  x, y = planted()
  names = np.array(['a', 'b', 'c'])[y]
  probe = fit_sparse(x, names, 4, criterion='auc', l2=0.3)
  quality = np.abs(auc(x, y) - 0.5).max(0)
  assert probe.columns.tolist() == np.argsort(-quality)[:4].tolist()
  alone = fit_logistic(x[:, probe.columns], names, 0.3, standardise=True)
  np.testing.assert_array_equal(probe.probe.coefficients, alone.coefficients)
  np.testing.assert_array_equal(probe.scores(x), alone.scores(x[:, probe.columns]))
  assert {*probe.predict(x)} == {'a', 'b', 'c'}


def test_a_curve_has_the_scores_of_the_probes_one_by_one():
  x, y = planted()
  splits, ks = split(y, seeds=2), (1, 2, 5)
  curve = fit_sparse_curve(x, y, splits, ks, criterion='auc')
  assert curve.columns.shape == (2, 5)
  for i, part in enumerate(splits):
    for j, k in enumerate(ks):
      one = fit_sparse(x[part.train], y[part.train], k, criterion='auc')
      assert one.columns.tolist() == curve.columns[i, :k].tolist()
      test, true = x[part.test], y[part.test]
      assert curve.accuracy[i, j] == accuracy(true, one.predict(test))
      areas = auc(one.scores(test), true)
      np.testing.assert_allclose(curve.auc[i, j], np.mean([areas[c, c] for c in range(3)]))
      recalls = [np.mean(one.predict(test[true == c]) == c) for c in range(3)]
      np.testing.assert_allclose(curve.balanced_accuracy[i, j], np.mean(recalls))
  assert [m.mean for m in curve.means('accuracy')] == curve.accuracy.mean(0).tolist()
  assert curve.means()[1].mean == 1


def test_the_test_part_changes_nothing_but_the_scores():
  x, y = planted()
  (part,) = split(y, seeds=1)
  other = x.copy()
  other[part.test] = np.random.default_rng(9).standard_normal(other[part.test].shape) * 100
  for basis in (None, functools.partial(principal_directions, n=6)):
    curves = [fit_sparse_curve(a, y, [part], [1, 3], basis=basis) for a in (x, other)]
    np.testing.assert_array_equal(curves[0].columns, curves[1].columns)
    assert (curves[0].auc != curves[1].auc).any()


def test_coordinates_along_directions_are_columns_too():
  x, y = planted()
  for make in (principal_directions, random_directions):
    probe = fit_sparse(x, y, 3, basis=functools.partial(make, n=10))
    columns = x @ make(x, 10).T
    direct = fit_sparse(columns, y, 3)
    np.testing.assert_array_equal(probe.columns, direct.columns)
    np.testing.assert_allclose(probe.read(x), columns[:, probe.columns])
    np.testing.assert_allclose(probe.scores(x), direct.scores(columns), atol=1e-9)


def test_a_class_along_one_direction_needs_one_coordinate_in_its_own_basis_and_more_among_features():
  random = np.random.default_rng(3)
  y = np.arange(80) % 2
  direction = random.standard_normal(200)
  direction /= np.linalg.norm(direction)
  x = random.standard_normal((80, 200)) + 8 * y[:, None] * direction
  splits = split(y, seeds=4)
  principal = functools.partial(principal_directions, n=5)
  along = fit_sparse_curve(x, y, splits, [1], basis=principal)
  assert along.means()[0].mean > 0.97
  assert fit_sparse_curve(x, y, splits, [1]).means()[0].mean < 0.9


# --- directions -------------------------------------------------------------------------------------------


def test_principal_directions_are_eigenvectors_of_the_covariance_in_order():
  x, _ = planted(n=40, columns=12)
  found = principal_directions(x, 5)
  np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-12)
  values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][:5]
  np.testing.assert_allclose(np.cov((x @ found.T).T, bias=True), np.diag(values), atol=1e-10)
  assert (np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1) > 0).all()
  np.testing.assert_allclose(principal_directions(x + 100.0, 5), found, atol=1e-8)


def test_random_directions_are_those_of_the_controls_of_steering():
  x, _ = planted(n=5, columns=12)
  found = random_directions(x, 7, seed=3)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
  np.testing.assert_array_equal(found, draw_directions(np.eye(12)[0], 7, 3))


def test_there_are_no_more_principal_directions_than_examples_minus_one():
  x, _ = planted(n=6, columns=12)
  assert principal_directions(x, 5).shape == (5, 12)
  with pytest.raises(ProbingError, match='6 principal directions of features that vary in 5'):
    principal_directions(x, 6)


# --- errors -----------------------------------------------------------------------------------------------

X, Y = planted(n=12, columns=6 + 6)
SPLITS = split(Y, test=0.25, seeds=2)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: fit_sparse(X, Y, 13), 'k=13 of 12 columns'),
    (lambda: fit_sparse(X, Y, 0), 'k=0; expected a whole number of at least 1'),
    (lambda: fit_sparse(X, Y, 2, criterion='aucs'), "unknown criterion 'aucs'"),
    (lambda: fit_sparse(X, Y, 2, basis=lambda x: np.ones((3, 5))), 'directions of width 5'),
    (lambda: fit_sparse(X, Y, 2, basis=lambda x: x[:2] * np.nan), 'directions contain NaN'),
    (lambda: fit_sparse(X[None], Y, 2), r'expected \[B, D\] and \[B\]'),
    (lambda: fit_sparse(X, Y, 2).predict(X[:, :5]), 'width 5'),
    (lambda: fit_sparse(0 * X, Y, 2), 'all 2 features are constant'),
    (lambda: fit_sparse_curve(X, Y, [], [1]), r'splits=\[\]: nothing to fit'),
    (lambda: fit_sparse_curve(X, Y, SPLITS, []), 'nothing to fit'),
    (lambda: fit_sparse_curve(X, Y, SPLITS, [1, 13]), 'k=13'),
    (lambda: fit_sparse_curve(X[:9], Y[:9], SPLITS, [1]), 'not one of 9 examples'),
    (
      lambda: fit_sparse_curve(X, Y, [Split(np.arange(8), np.arange(7, 12))], [1]),
      'split 0 is not one of 12 examples into two parts',
    ),
    (
      lambda: fit_sparse_curve(X, Y, [Split(np.flatnonzero(Y > 0), np.flatnonzero(Y == 0))], [1]),
      'the train part of split 0 lacks 1 classes',
    ),
    (lambda: fit_sparse_curve(X, Y, SPLITS, [1]).means('acc'), "unknown metric 'acc'"),
    (lambda: principal_directions(X[None], 2), r'expected \[B, D\]'),
    (lambda: fit_sparse_curve(X, Y, [0, 1], [1]), r'splits=\[0, 1\]: nothing to fit'),
    (lambda: fit_sparse_curve(X, Y, SPLITS, 1), 'ks=1: nothing to fit'),
    (lambda: fit_sparse(X, Y, 1, basis=np.eye(3)), 'is not a function of the training features'),
    (lambda: probe_basis(fit_sparse(X, Y, 1)), 'a SparseProbe has no directions of classes'),
    (lambda: principal_directions(X, 0), 'n=0'),
    (lambda: random_directions(X, 0), 'n=0'),
  ],
)
def test_bad_input_is_refused(call, words):
  with pytest.raises(ProbingError, match=words):
    call()
