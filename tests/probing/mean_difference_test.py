"""Mean differences are differences of means, and whitening inverts the shrunk covariance."""

import numpy as np
import pytest

from mechjax.probing import ProbingError, fit_mean_difference
from tests.probing.examples import examples


@pytest.mark.parametrize('C', [2, 4])
def test_the_class_with_the_nearest_mean_is_predicted(C):
  x, y = examples(40, 9, C)
  others = examples(50, 9, C, seed=1)[0]
  means = np.stack([x[y == c].mean(0) for c in range(C)])
  nearest = ((others[:, None] - means) ** 2).sum(-1).argmin(1)
  probe = fit_mean_difference(x, y)
  np.testing.assert_array_equal(probe.predict(others), nearest)
  np.testing.assert_allclose(probe.coefficients, means - means.mean(0), atol=1e-10)
  if C == 2:
    np.testing.assert_allclose(probe.contrast, means[1] - means[0], atol=1e-10)
    middle = probe.scores(means.mean(0)[None])[0]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-9)


@pytest.mark.parametrize('D', [6, 50])
@pytest.mark.parametrize('shrinkage', [1e-3, 0.3, 1.0])
def test_whitening_is_the_inverse_of_the_shrunk_covariance_within_classes(D, shrinkage):
  x, y = examples(30, D, C=3)
  means = np.stack([x[y == c].mean(0) for c in range(3)])
  within = x - means[y]
  covariance = within.T @ within / len(x)
  shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / D * np.eye(D)
  inverse = np.linalg.inv(shrunk)
  probe = fit_mean_difference(x, y, shrinkage=shrinkage)
  expected = (means - means.mean(0)) @ inverse
  np.testing.assert_allclose(probe.coefficients, expected, atol=1e-9 * np.abs(expected).max())
  others = examples(20, D, seed=2)[0]
  distances = np.einsum(
    'bcd,de,bce->bc', *[others[:, None] - means, inverse, others[:, None] - means]
  )
  differences = probe.scores(others)[:, 1:] - probe.scores(others)[:, :1]
  np.testing.assert_allclose(differences, (distances[:, :1] - distances[:, 1:]) / 2, rtol=1e-6)


def test_a_batch_equals_its_problems_one_by_one():
  x = np.stack([examples(20, 7, seed=s)[0] for s in range(2)])
  y = np.stack([examples(20, seed=s)[1] for s in range(3)])
  for shrinkage in (None, 0.2):
    probes = fit_mean_difference(x[:, None], y, shrinkage=shrinkage)
    assert probes.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
      one = fit_mean_difference(x[i], y[j], shrinkage=shrinkage)
      np.testing.assert_allclose(probes.coefficients[i, j], one.coefficients, atol=1e-10)
      np.testing.assert_allclose(probes.intercepts[i, j], one.intercepts, atol=1e-10)


def test_constant_features_have_coefficient_zero():
  x, y = examples(20, 5)
  x[:, 3] = 7.1
  probe = fit_mean_difference(x, y, shrinkage=0.1)
  assert np.flatnonzero(probe.constant).tolist() == [3]
  assert (probe.coefficients[:, 3] == 0).all()


X, Y = examples(9, 4)


@pytest.mark.parametrize('shrinkage', [0, 1.5, -0.1, True, '0.1', float('nan')])
def test_a_shrinkage_out_of_range_is_refused(shrinkage):
  with pytest.raises(ProbingError, match='expected None, or a number over 0 and up to 1'):
    fit_mean_difference(X, Y, shrinkage=shrinkage)


def test_classes_without_variance_cannot_be_whitened():
  equal = np.eye(3)[Y]
  with pytest.raises(ProbingError, match='all examples of a class are equal'):
    fit_mean_difference(equal, Y, shrinkage=0.5)
  assert (fit_mean_difference(equal, Y).predict(equal) == Y).all()


def test_labels_and_features_that_do_not_fit_are_refused():
  with pytest.raises(ProbingError, match='for 9 examples'):
    fit_mean_difference(X, Y[:5])
  with pytest.raises(ProbingError, match='all 4 features are constant'):
    fit_mean_difference(0 * X, Y)


def test_a_shrinkage_of_any_floating_point_type_is_the_same_number():
  x, y = np.random.default_rng(0).standard_normal((8, 3)), np.arange(8) % 2
  found = fit_mean_difference(x, y, shrinkage=np.float32(0.5)).coefficients
  np.testing.assert_array_equal(found, fit_mean_difference(x, y, shrinkage=0.5).coefficients)
