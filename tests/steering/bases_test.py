"""Orthonormal bases and removals, against NumPy's projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.steering import SteeringError, normalise, orthonormal_basis, remove

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((3, 8)).astype(np.float32)
X = jnp.asarray(RANDOM.standard_normal((2, 5, 8)), jnp.float32)


def test_a_basis_is_orthonormal_and_its_first_row_is_the_first_vector():
  basis = orthonormal_basis(VECTORS)
  np.testing.assert_allclose(basis @ basis.T, np.eye(3), rtol=0, atol=1e-6)
  np.testing.assert_allclose(basis[0], VECTORS[0] / np.linalg.norm(VECTORS[0]), atol=1e-6)
  assert (np.diagonal(basis @ VECTORS.T) > 0).all()


def test_a_removal_is_the_rest_of_a_least_squares_fit():
  found = remove(X, orthonormal_basis(VECTORS))
  rows = np.asarray(X, np.float64).reshape(-1, 8)
  fit = np.linalg.lstsq(VECTORS.T.astype(np.float64), rows.T, rcond=None)[0]
  np.testing.assert_allclose(found.reshape(-1, 8), rows - fit.T @ VECTORS, rtol=0, atol=1e-5)


def test_removing_one_after_the_other_is_not_a_removal():
  one_by_one = X
  for v in VECTORS:
    one_by_one = remove(one_by_one, orthonormal_basis(v[None]))
  assert np.abs(one_by_one @ VECTORS[0]).max() > 0.05
  assert np.abs(remove(X, orthonormal_basis(VECTORS)) @ VECTORS.T).max() < 1e-5


def test_a_removal_is_idempotent_and_independent_of_lengths():
  with jax.enable_x64(True):
    x, basis = jnp.asarray(X, jnp.float64), orthonormal_basis(VECTORS.astype(np.float64))
    once = remove(x, basis)
    np.testing.assert_allclose(remove(once, basis), once, rtol=0, atol=1e-14)
    longer = orthonormal_basis(VECTORS.astype(np.float64) * [[1e200], [1e-200], [-3.0]])
    np.testing.assert_allclose(remove(x, longer), once, rtol=0, atol=1e-13)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_an_empty_basis_changes_nothing_and_the_dtype_stays(dtype):
  x = X.astype(dtype).at[0, 0, 0].set(-0.0)
  empty = orthonormal_basis(VECTORS[:0])
  assert empty.shape == (0, 8)
  np.testing.assert_array_equal(
    np.asarray(remove(x, empty)).view(np.uint8), np.asarray(x).view(np.uint8)
  )
  assert remove(x, orthonormal_basis(VECTORS)).dtype == x.dtype


def test_sixteen_bits_are_rounded_once():
  x, basis = X.astype('bfloat16'), orthonormal_basis(VECTORS)
  expected = remove(x.astype('float32'), basis).astype('bfloat16')
  np.testing.assert_array_equal(remove(x, basis), expected)


@pytest.mark.parametrize(
  ('vectors', 'words'),
  [
    (np.zeros((1, 4)), 'direction 0 is zero'),
    (np.array([[1.0, 2], [0, 0]]), 'direction 1 is zero'),
    (np.array([[1.0, np.nan]]), 'NaN'),
    (np.array([[1.0, 2, 3], [2, 4, 6]]), 'vector 1 lies in the span'),
    (np.array([[1.0, 2, 3], [0, 1, 1], [1, 3, 4]], np.float32), 'vector 2 lies in the span'),
    (np.eye(3)[[0, 1, 2, 0], :2] + 1, '4 vectors of width 2'),
    (np.ones(4), 'not a matrix of directions'),
    (np.ones((1, 4), int), 'not a matrix of directions'),
  ],
)
def test_vectors_without_a_basis_are_refused(vectors, words):
  with pytest.raises(SteeringError, match=words):
    orthonormal_basis(vectors)


def test_a_basis_of_another_width_is_refused():
  with pytest.raises(SteeringError, match='another model'):
    remove(X, np.eye(3, dtype=np.float32))


def test_a_direction_is_normalised_whatever_its_length():
  for length in (1e-30, 1.0, 1e30):
    unit = normalise(np.float32(length) * VECTORS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, atol=1e-6)
  with pytest.raises(SteeringError, match='direction 1 is zero'):
    normalise(np.array([[1.0, 2], [0, 0]]))


@pytest.mark.parametrize('scale', [1e-42, 1e200])
def test_lengths_that_float32_does_not_hold_have_a_direction(scale):
  r = np.random.default_rng(0).standard_normal(8)
  np.testing.assert_allclose(normalise(scale * r), r / np.linalg.norm(r), rtol=1e-6)
