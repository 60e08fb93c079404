"""Matching pursuit: the coefficient of the chosen latent grows by its product with the residual.

    v_i <- v_i + d_i . r

(Mallat and Zhang 1993, section III.) The error |r| never grows, since (d_i . r)^2 is taken from its square. A latent
may be chosen again, and its coefficient then grows again. It is the simplest pursuit, and stalls where directions are
correlated: the other coefficients are never corrected.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mechjax.sae.pursuit.active_set import Problem


def update(problem: Problem) -> jax.Array:
  """New coefficients, [A, B]."""
  return problem.values_AxB + jnp.where(problem.target_AxB, problem.product_B[None], 0)
