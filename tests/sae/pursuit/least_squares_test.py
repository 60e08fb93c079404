"""The coefficients of orthogonal pursuit: their optimality conditions, and SciPy's solvers."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from mechjax.sae.pursuit import Pursuit, orthogonal
from mechjax.sae.pursuit.active_set import Problem
from tests.sae.pursuit import dense

pytestmark = pytest.mark.usefixtures('float64')
A = 6


def problem(seed=0, B=12, D=9):
  """A least-squares problem per token, all of whose slots are active, and its directions and targets."""
  r = np.random.default_rng(seed)
  rows = r.standard_normal((B, A, D))
  rows /= np.linalg.norm(rows, axis=2, keepdims=True)
  x = r.standard_normal((B, D))
  gram = jnp.asarray(np.einsum('bad,bcd->acb', rows, rows))
  start = jnp.asarray(r.uniform(0.1, 1, (A, B)))
  none = jnp.zeros((A, B), bool)
  given = Problem(
    start, none, jnp.zeros(B), gram, jnp.asarray(np.einsum('bad,bd->ab', rows, x)), jnp.int32(A)
  )
  return given, rows, x


def gradients(rows, x, v):
  """Products of the directions with the residuals, [B, A]."""
  return np.einsum('bad,bd->ba', rows, x - np.einsum('ba,bad->bd', v, rows))


def test_coordinate_descent_satisfies_the_conditions_of_kuhn_and_tucker():
  given, rows, x = problem()
  v = np.asarray(orthogonal.descend(given, 400)).T
  g = gradients(rows, x, v)
  assert (v >= 0).all()
  assert (v == 0).any()
  np.testing.assert_allclose(g[v > 0], 0, rtol=0, atol=1e-10)
  assert (g[v == 0] <= 1e-10).all()
  for row, directions, target in zip(v, rows, x):
    np.testing.assert_allclose(row, nnls(directions.T, target)[0], rtol=0, atol=1e-10)


def test_twenty_sweeps_come_close_and_every_sweep_helps():
  given, rows, x = problem(1)
  size = lambda n: np.sum(  # noqa: E731
    (x - np.einsum('ba,bad->bd', np.asarray(orthogonal.descend(given, n)).T, rows)) ** 2, 1
  )
  errors = np.stack([size(n) for n in (1, 2, 5, 20)])
  best = np.array([nnls(d.T, t)[1] ** 2 for d, t in zip(rows, x)])
  assert (np.diff(errors, axis=0) < 1e-12).all()
  assert (errors[-1] < 1.001 * best).all()


def test_signed_coefficients_leave_nothing_along_the_directions():
  given, rows, x = problem(2)
  v = np.asarray(orthogonal.solve(given)).T
  np.testing.assert_allclose(gradients(rows, x, v), 0, rtol=0, atol=1e-10)


def test_a_dependent_direction_leaves_the_coefficients_as_they_were():
  given, _, _ = problem(3, B=2)
  gram = given.gram_AxAxB.at[:, :, 1].set(jnp.ones((A, A)))  # the same direction in all slots
  v = orthogonal.solve(given._replace(gram_AxAxB=gram))
  np.testing.assert_array_equal(v[:, 1], given.values_AxB[:, 1])
  np.testing.assert_allclose(v[:, 0], orthogonal.solve(given)[:, 0], rtol=0, atol=1e-12)


def test_a_whole_pursuit_ends_at_the_solution_on_its_support():
  W, x = dense.case(4, B=16, M=40, D=16)
  w = np.asarray(Pursuit(6, 'orthogonal', sweeps=400).code(W, x).to_dense())
  for row, target in zip(w, x):
    (support,) = np.nonzero(row)
    solution, _ = nnls(W[support].T, target)
    np.testing.assert_allclose(row[support], solution, rtol=0, atol=1e-9)
    np.testing.assert_allclose(W[support] @ (target - row @ W), 0, rtol=0, atol=1e-9)
