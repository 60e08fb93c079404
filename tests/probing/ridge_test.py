"""Ridge probes solve their normal equations, and errors of examples left out equal those of refits."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.probing import (
  ProbingError,
  choose_ridge_l2,
  fit_ridge,
  fit_ridge_classifier,
  leave_one_out,
)
from tests.probing.examples import examples

SHAPES = [(30, 8), (20, 45), (15, 15)]


def by_hand(x, y, l2, fit_intercept=True):
  """Coefficients and intercept by the normal equations, with the intercept as a feature without a penalty."""
  full = np.concatenate([x, np.ones((len(x), 1))], 1) if fit_intercept else x
  penalty = l2 * np.diag([1.0] * x.shape[1] + [0.0] * fit_intercept)
  solution = np.linalg.solve(full.T @ full + penalty, full.T @ y)
  return (solution[:-1], solution[-1]) if fit_intercept else (solution, 0.0)


def case(n, D, seed=0):
  x, _ = examples(n, D, seed=seed)
  return x, x[:, :3].sum(1) + np.random.default_rng(seed).standard_normal(n) + 5


@pytest.mark.parametrize(('n', 'D'), SHAPES)
@pytest.mark.parametrize('fit_intercept', [True, False])
@pytest.mark.parametrize('l2', [0.01, 20.0])
def test_a_fit_solves_the_normal_equations(n, D, fit_intercept, l2):
  x, y = case(n, D)
  probe = fit_ridge(x, y, l2, fit_intercept=fit_intercept)
  w, b = by_hand(x, y, l2, fit_intercept)
  np.testing.assert_allclose(probe.coefficients, w, rtol=0, atol=1e-8)
  np.testing.assert_allclose(probe.intercepts, b, rtol=0, atol=1e-8)
  np.testing.assert_allclose(probe.predict(x), x @ w + b, rtol=0, atol=1e-7)


@pytest.mark.parametrize(('n', 'D'), SHAPES)
@pytest.mark.parametrize('fit_intercept', [True, False])
@pytest.mark.parametrize('l2', [1e-6, 0.5, 1e4])
def test_errors_of_examples_left_out_are_those_of_refits(n, D, fit_intercept, l2):
  x, y = case(n, D)
  found = leave_one_out(x, y, l2, fit_intercept=fit_intercept)
  for i in range(n):
    rest = np.arange(n) != i
    probe = fit_ridge(x[rest], y[rest], l2, fit_intercept=fit_intercept)
    np.testing.assert_allclose(
      found[i], y[i] - probe.predict(x[i : i + 1])[0], rtol=1e-7, atol=1e-9
    )


def test_a_batch_equals_its_problems_one_by_one():
  x = np.stack([case(18, 25, seed=s)[0] for s in range(2)])
  y = np.stack([case(18, 25, seed=s)[1] for s in range(3)])
  l2 = np.array([0.1, 3.0])
  probes = fit_ridge(x[:, None, None], y[:, None], l2)
  errors = leave_one_out(x[:, None, None], y[:, None], l2)
  assert probes.coefficients.shape == (2, 3, 2, 25)
  for i, j, k in np.ndindex(2, 3, 2):
    one = fit_ridge(x[i], y[j], l2[k])
    np.testing.assert_allclose(probes.coefficients[i, j, k], one.coefficients, atol=1e-10)
    np.testing.assert_allclose(probes.predict(x[0])[i, j, k], one.predict(x[0]), atol=1e-9)
    np.testing.assert_allclose(errors[i, j, k], leave_one_out(x[i], y[j], l2[k]), atol=1e-9)
    assert probes.l2[i, j, k] == one.l2 == l2[k]


def test_a_classifier_regresses_one_against_minus_one():
  x, y = examples(30, 12, C=3)
  probe = fit_ridge_classifier(x, y, 2.0, standardise=True)
  for c in range(3):
    one = fit_ridge(x, np.where(y == c, 1.0, -1.0), 2.0, standardise=True)
    np.testing.assert_allclose(probe.coefficients[c], one.coefficients, atol=1e-10)
    np.testing.assert_allclose(probe.intercepts[c], one.intercepts, atol=1e-10)
  np.testing.assert_array_equal(probe.predict(x), probe.scores(x).argmax(1))
  deviation = x.std(0)
  scaled = fit_ridge_classifier((x - x.mean(0)) / deviation, y, 2.0)
  np.testing.assert_allclose(probe.coefficients * deviation, scaled.coefficients, atol=1e-9)


def test_the_penalty_is_chosen_by_the_squared_error_of_examples_left_out():
  x = np.stack([examples(24, 30, C=3, seed=s, shift=s)[0] for s in (0, 1)])
  y = examples(24, C=3)[1]
  candidates = [100.0, 1.0, 0.01]
  choice = choose_ridge_l2(x, y, candidates)
  assert choice.candidates.tolist() == [0.01, 1.0, 100.0]
  for i in range(2):
    expected = [
      np.mean([leave_one_out(x[i], np.where(y == c, 1.0, -1.0), l2) ** 2 for c in range(3)])
      for l2 in choice.candidates
    ]
    np.testing.assert_allclose(choice.losses[i], expected, atol=1e-10)
    assert choice.l2[i] == choice.candidates[np.argmin(expected)]
  assert choice.at_edge.tolist() == [x in (0.01, 100.0) for x in choice.l2]


def test_constant_features_have_coefficient_zero():
  x, y = case(20, 6)
  x[:, 2] = 0.3
  probe = fit_ridge(x, y, standardise=True)
  assert np.flatnonzero(probe.constant).tolist() == [2]
  assert probe.coefficients[2] == 0
  classifier = fit_ridge_classifier(x, y > 7)
  assert (classifier.coefficients[:, 2] == 0).all()
  assert classifier.constant.tolist() == probe.constant.tolist()


X, Y = case(10, 4)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: fit_ridge(X, Y[:-1]), r'values of shape \(9,\) and type float64 for 10 examples'),
    (lambda: fit_ridge(X, np.where(Y > 5, np.nan, Y)), 'the values contain NaN'),
    (lambda: fit_ridge(X, Y > 5), 'type bool'),
    (lambda: fit_ridge(X, Y.astype(str)), 'values of shape'),
    (lambda: fit_ridge(X / 0.0, Y), 'features contain NaN or infinity'),
    (lambda: fit_ridge(0 * X + 1, Y), 'all 4 features are constant'),
    (lambda: fit_ridge(X, Y, -1.0), 'l2=-1.0'),
    (lambda: fit_ridge(X, Y).predict(X[:, :3]), 'width 3'),
    (lambda: fit_ridge(X, Y, [1.0, 2.0]).predict(np.stack([X] * 3)), 'problems of shape'),
    (lambda: fit_ridge_classifier(X, Y), 'labels of type float64'),
    (lambda: fit_ridge_classifier(X, np.arange(10) > 8), 'the class True has 1 member'),
    (lambda: choose_ridge_l2(X, Y > 5, [1.0]), 'two different penalties'),
    (lambda: choose_ridge_l2(X, Y > 5, [1.0, 1.0]), 'two different penalties'),
  ],
)
@pytest.mark.filterwarnings('ignore:divide by zero')
def test_bad_input_is_refused(call, words):
  with pytest.raises(ProbingError, match=words):
    call()


def test_values_in_bfloat16_are_those_in_float32():
  x, values = np.arange(12.0).reshape(6, 2) ** 2, jnp.asarray([1, 2, 0.5, 4, -1, 3], jnp.bfloat16)
  expected = fit_ridge(x, np.asarray(values, np.float32)).coefficients
  np.testing.assert_array_equal(fit_ridge(x, values).coefficients, expected)
