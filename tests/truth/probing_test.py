"""Probes, scores, splits and class means equal those of scikit-learn, with more features than examples as well."""

import numpy as np
import pytest

from mechjax.probing import (
  auc,
  balanced_accuracy,
  choose_l2,
  choose_ridge_l2,
  fit_logistic,
  fit_mean_difference,
  fit_ridge,
  fit_ridge_classifier,
  leave_one_out,
  make_folds,
  principal_directions,
)
from tests.probing.examples import examples

pytestmark = pytest.mark.truth

CASES = {
  'three classes': {'n': 60, 'D': 20, 'C': 3},
  'two classes': {'n': 60, 'D': 20, 'C': 2},
  'more features': {'n': 40, 'D': 300, 'C': 3},
  'more features, two classes': {'n': 40, 'D': 300, 'C': 2},
  'unbalanced': {'D': 15, 'C': 3, 'counts': [50, 7, 3]},
  'unbalanced, more features': {'D': 90, 'C': 2, 'counts': [40, 4]},
  'seven classes': {'n': 84, 'D': 30, 'C': 7},
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('l2', [0.05, 5.0])
@pytest.mark.parametrize('fit_intercept', [True, False])
@pytest.mark.filterwarnings('ignore:Line Search failed', 'ignore:The line search algorithm')
def test_logistic_regression(name, l2, fit_intercept):
  from sklearn.linear_model import LogisticRegression

  x, y = examples(**CASES[name])
  theirs = LogisticRegression(
    C=1 / l2, fit_intercept=fit_intercept, solver='newton-cg', tol=1e-12, max_iter=10_000
  ).fit(x, y)
  probe = fit_logistic(x, y, l2, fit_intercept=fit_intercept)
  two = len(probe.classes) == 2
  ours = probe.contrast[None] if two else probe.coefficients
  shift = probe.intercepts[1:] - probe.intercepts[:1] if two else probe.intercepts
  largest = np.abs(theirs.coef_).max()
  np.testing.assert_allclose(ours, theirs.coef_, rtol=0, atol=1e-6 * largest)
  np.testing.assert_allclose(shift, np.broadcast_to(theirs.intercept_, shift.shape), atol=1e-5)
  others, _ = examples(**{**CASES[name], 'seed': 1})
  np.testing.assert_allclose(probe.probabilities(others), theirs.predict_proba(others), atol=1e-5)
  np.testing.assert_array_equal(probe.predict(others), theirs.predict(others))


def test_logistic_regression_of_standardised_features():
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  x, y = examples(n=50, D=80)
  x[:, 3] = 1.5
  theirs = make_pipeline(
    StandardScaler(), LogisticRegression(solver='newton-cg', tol=1e-12, max_iter=10_000)
  ).fit(x, y)
  probe = fit_logistic(x, y, standardise=True)
  np.testing.assert_allclose(probe.probabilities(x), theirs.predict_proba(x), atol=1e-7)


def test_the_choice_of_the_penalty_by_cross_validation():
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import PredefinedSplit, cross_val_score

  x, y = examples(n=60, D=100, C=3, shift=0.3)
  candidates = [0.1, 1.0, 10.0, 100.0]
  fold = make_folds(y, 4)
  losses = [
    -cross_val_score(
      LogisticRegression(C=1 / l2, solver='newton-cg', tol=1e-10, max_iter=10_000),
      x,
      y,
      cv=PredefinedSplit(fold),
      scoring='neg_log_loss',
    ).mean()
    for l2 in candidates
  ]
  choice = choose_l2(x, y, candidates, fold)
  np.testing.assert_allclose(choice.losses, losses, rtol=1e-5)
  assert choice.l2 == candidates[int(np.argmin(losses))]


@pytest.mark.parametrize('name', CASES)
def test_ridge_and_its_classifier(name):
  from sklearn.linear_model import Ridge, RidgeClassifier

  x, y = examples(**CASES[name])
  for l2 in (0.01, 10.0):
    for fit_intercept in (True, False):
      options = {'fit_intercept': fit_intercept}
      theirs = Ridge(alpha=l2, **options).fit(x, x[:, 0] + y)
      ours = fit_ridge(x, x[:, 0] + y, l2, **options)
      np.testing.assert_allclose(ours.coefficients, theirs.coef_, rtol=0, atol=1e-6)
      np.testing.assert_allclose(ours.intercepts, theirs.intercept_, rtol=0, atol=1e-6)
      classifier = RidgeClassifier(alpha=l2, **options).fit(x, y)
      probe = fit_ridge_classifier(x, y, l2, **options)
      expected = np.atleast_2d(classifier.coef_)  # of two classes, the row of the second
      rows = probe.coefficients[-len(expected) :]
      np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)
      np.testing.assert_array_equal(probe.predict(x), classifier.predict(x))


@pytest.mark.parametrize('name', CASES)
def test_the_choice_of_the_ridge_penalty_by_leaving_one_out(name):
  from sklearn.linear_model import RidgeClassifierCV, RidgeCV

  x, y = examples(**CASES[name])
  candidates = [0.1, 1.0, 10.0, 100.0, 1000.0]
  theirs = RidgeCV(candidates, store_cv_results=True).fit(x, x[:, 0] + y)
  ours = leave_one_out(x, x[:, 0] + y, candidates)
  np.testing.assert_allclose(ours.T**2, theirs.cv_results_, rtol=1e-5, atol=1e-8)
  chosen = RidgeClassifierCV(candidates).fit(x, y).alpha_
  assert choose_ridge_l2(x, y, candidates).l2 == chosen


@pytest.mark.parametrize('name', CASES)
def test_nearest_means_and_linear_discriminants(name):
  from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
  from sklearn.neighbors import NearestCentroid

  x, y = examples(**CASES[name])
  others, _ = examples(**{**CASES[name], 'seed': 1})
  nearest = NearestCentroid().fit(x, y)
  np.testing.assert_array_equal(fit_mean_difference(x, y).predict(others), nearest.predict(others))
  for shrinkage in (0.05, 1.0):
    theirs = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=shrinkage).fit(x, y)
    probe = fit_mean_difference(x, y, shrinkage=shrinkage)
    scores = probe.scores(others)
    ours = scores[:, 1:] - scores[:, :1]
    decision = theirs.decision_function(others)
    if decision.ndim == 2:
      decision = decision[:, 1:] - decision[:, :1]
    # Their scores hold the logarithms of the frequencies of the classes.
    prior = np.log(theirs.priors_)
    expected = decision.reshape(ours.shape) - (prior[1:] - prior[0])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_auc_and_balanced_accuracy_with_ties():
  from sklearn.metrics import balanced_accuracy_score, roc_auc_score

  random = np.random.default_rng(0)
  columns, y = random.integers(0, 4, (50, 6)), random.integers(0, 3, 50)
  found = auc(columns, y)
  for c in range(3):
    for j in range(6):
      np.testing.assert_allclose(found[c, j], roc_auc_score(y == c, columns[:, j]), atol=1e-12)
  predicted = random.integers(0, 3, 50)
  np.testing.assert_allclose(
    balanced_accuracy(y, predicted), balanced_accuracy_score(y, predicted), atol=1e-12
  )


def test_principal_directions():
  from sklearn.decomposition import PCA

  x, _ = examples(n=40, D=60)
  theirs = PCA(5, svd_solver='full').fit(x).components_
  ours = principal_directions(x, 5)
  np.testing.assert_allclose(np.abs(np.sum(ours * theirs, 1)), 1, atol=1e-10)
