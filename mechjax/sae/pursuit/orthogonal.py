"""Orthogonal matching pursuit: the best coefficients of the chosen latents, at every step.

    v = argmin over v_S of |x - v_S D_S|^2        S = {v != 0} and the latent chosen last

(Pati, Rezaiifar and Krishnaprasad 1993.) Signed coefficients are the solution of the normal equations G v = b, with
the Gram matrix G of the directions, by its Cholesky factor. Non-negative ones (Bruckstein, Elad and Zibulevsky 2008)
are found by cyclic coordinate descent, which begins at the coefficients of the step before,

    v_j <- max(0, v_j + (b_j - (G v)_j) / G_jj)

a fixed number of times over all slots. Each update is the exact minimum in one coordinate, so the error never grows,
however few the sweeps are. A latent whose coefficient becomes 0 leaves S.

Sharp edges: 20 sweeps reach the solution within rounding of float32 unless the chosen directions are nearly dependent,
as strongly correlated ones are, and any k of them with k near D. Of 8 random directions in 12 dimensions, half of the
codes are not at their minimum after 20 sweeps: the error is 0.03 % larger, and coefficients differ by up to the largest
of them. After 400 sweeps all are; `sweeps` is a setting. A latent that depends linearly on S, except for rounding, has
no Cholesky factor, and then the coefficients stay as they were.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from mechjax.sae.pursuit.active_set import Problem


def update(problem: Problem, nonnegative: bool, sweeps: int) -> jax.Array:
  """New coefficients, [A, B]."""
  return descend(problem, sweeps) if nonnegative else solve(problem)


def descend(problem: Problem, sweeps: int) -> jax.Array:
  """Non-negative least squares by cyclic coordinate descent, [A, B]."""
  gram, b_AxB, active_AxB = problem.gram_AxAxB, problem.products_AxB, problem.active_AxB

  def update_slot(j: jax.Array, v_AxB: jax.Array) -> jax.Array:
    row_AxB = gram[j]
    length_B = row_AxB[j]
    left_B = b_AxB[j] - jnp.sum(row_AxB * v_AxB, 0)
    best_B = jnp.maximum(v_AxB[j] + left_B / jnp.where(length_B > 0, length_B, 1), 0)
    return v_AxB.at[j].set(jnp.where(active_AxB[j], best_B, 0))

  def sweep(_: jax.Array, v_AxB: jax.Array) -> jax.Array:
    return lax.fori_loop(0, problem.n_slots, update_slot, v_AxB)

  return lax.fori_loop(0, sweeps, sweep, problem.values_AxB)


def solve(problem: Problem) -> jax.Array:
  """Least squares on the active set, [A, B]."""
  active_BxA = problem.active_AxB.T
  both_BxAxA = active_BxA[:, :, None] & active_BxA[:, None, :]
  identity_AxA = jnp.eye(active_BxA.shape[1], dtype=problem.gram_AxAxB.dtype)
  gram_BxAxA = jnp.where(both_BxAxA, problem.gram_AxAxB.transpose(2, 0, 1), identity_AxA[None])
  factor_BxAxA = jnp.linalg.cholesky(gram_BxAxA)
  b_BxA = jnp.where(active_BxA, problem.products_AxB.T, 0)
  solution_BxA = cho_solve((factor_BxAxA, True), b_BxA[:, :, None])[:, :, 0]
  has_factor_B = jnp.isfinite(factor_BxAxA).all((1, 2))
  return jnp.where(has_factor_B[None], solution_BxA.T, problem.values_AxB)
