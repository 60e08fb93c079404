"""Matching pursuit: the coefficient of the chosen latent grows by its product with the residual.

    v_i <- v_i + d_i . r

(Mallat and Zhang 1993, section III.) The error |r| never grows, since (d_i . r)^2 is taken from its square. A latent
may be chosen again, and its coefficient then grows again. Non-negative coefficients stay as they are if the product is
negative. It is the simplest pursuit, and stalls where directions are
correlated: the other coefficients are never corrected.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mechjax.sae.pursuit.active_set import Problem


def update(problem: Problem, nonnegative: bool) -> jax.Array:
  """New coefficients, [A, B]."""
  added_B = jnp.maximum(problem.product_B, 0) if nonnegative else problem.product_B
  return problem.values_AxB + jnp.where(problem.target_AxB, added_B[None], 0)
