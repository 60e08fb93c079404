"""Fits from sums equal numpy.linalg.lstsq on the data, for every block left out, also with badly scaled inputs."""

import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae.analysis.normal_equations import NormalEquations
from mechjax.sae.analysis.token_means import TokenMeans

K, D, E, N = 3, 5, 2, 60
RANDOM = np.random.default_rng(0)
OWNER = RANDOM.integers(0, K, N)


def data(kind):
  x = RANDOM.standard_normal((N, D))
  if kind == 'scaled':
    x = x * 10.0 ** np.arange(-3, D - 3) + 1000
  if kind == 'constant':
    x[:, 2] = 0.1
  if kind == 'dependent':
    x[:, 1] = 2 * x[:, 0] - x[:, 4]
  return x, x @ RANDOM.standard_normal((D, E)) + RANDOM.standard_normal((N, E)) + 5


def fill(x, y, pieces=4):
  equations = NormalEquations(K)
  for part in np.array_split(np.arange(N), pieces):
    for block in range(K):
      at = part[OWNER[part] == block]
      equations.add(block, x[at], y[at])
  return equations


@pytest.mark.parametrize('kind', ['plain', 'scaled', 'constant', 'dependent'])
def test_fits_and_errors_equal_those_of_least_squares_on_the_data(kind):
  x, y = data(kind)
  equations = fill(x, y)
  z = np.column_stack([x, np.ones(N)])
  fitted = z @ np.linalg.lstsq(z, y, rcond=None)[0]
  linear = equations.solve()
  np.testing.assert_allclose(x @ linear.weights + linear.bias, fitted, rtol=1e-7, atol=1e-7)
  found = equations.cross_validate()
  for block in range(K):
    inside, out = block == OWNER, block != OWNER
    predicted = z[inside] @ np.linalg.lstsq(z[out], y[out], rcond=None)[0]
    residual = np.square(y[inside] - predicted).sum(0)
    total = np.square(y[inside] - y[out].mean(0)).sum(0)
    np.testing.assert_allclose(found.residual[block], residual, rtol=1e-6)
    np.testing.assert_allclose(found.total[block], total, rtol=1e-10)


def test_weights_themselves_are_those_of_least_squares():
  x, y = data('scaled')
  z = np.column_stack([x, np.ones(N)])
  expected = np.linalg.lstsq(z, y, rcond=None)[0]
  linear = fill(x, y).solve()
  np.testing.assert_allclose(linear.weights, expected[:-1], rtol=1e-6)
  np.testing.assert_allclose(linear.bias, expected[-1], rtol=1e-6)


def test_the_split_into_batches_does_not_matter():
  x, y = data('plain')
  a, b = fill(x, y, 1), fill(x, y, 20)
  for one, other in zip(a.cross_validate(), b.cross_validate()):
    np.testing.assert_allclose(one, other, rtol=1e-10)
  np.testing.assert_allclose(a.scatter(), b.scatter(), rtol=1e-10)
  np.testing.assert_allclose(a.scatter().sum(0), np.square(y - y.mean(0)).sum(0), rtol=1e-10)


def test_token_means_equal_the_means_of_the_other_blocks():
  ids, y = RANDOM.integers(0, 9, N), RANDOM.standard_normal((N, E)) + 3
  ids[OWNER == 1] += 20  # not in any other block
  means = TokenMeans(K)
  for part in np.array_split(np.arange(N), 5):
    for block in range(K):
      at = part[OWNER[part] == block]
      means.add(block, ids[at], y[at])
  found = means.cross_validate()
  for block in range(K):
    out = block != OWNER
    overall = y[out].mean(0)
    residual = total = 0
    for i in np.flatnonzero(~out):
      same = out & (ids == ids[i])
      mean = y[same].mean(0) if same.any() else overall
      residual, total = residual + (y[i] - mean) ** 2, total + (y[i] - overall) ** 2
    np.testing.assert_allclose(found.residual[block], residual, rtol=1e-9)
    np.testing.assert_allclose(found.total[block], total, rtol=1e-9)
  np.testing.assert_allclose(found.residual[1], found.total[1], rtol=1e-12)


def test_fits_that_are_not_determined_are_refused():
  x, y = data('plain')
  equations = NormalEquations(K)
  with pytest.raises(SAEError, match='no tokens'):
    equations.cross_validate()
  equations.add(0, x, y)
  with pytest.raises(SAEError, match='1 of 3 blocks have tokens'):
    equations.cross_validate()
  with pytest.raises(SAEError, match='widths 4 and 2 after some of widths'):
    equations.add(1, x[:, :4], y)
  few = NormalEquations(2)
  few.add(0, x[: D + 1], y[: D + 1])
  few.add(1, x, y)
  with pytest.raises(SAEError, match='6 tokens for 6 coefficients'):
    few.cross_validate()
