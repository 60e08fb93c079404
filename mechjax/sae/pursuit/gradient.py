"""Gradient pursuit: one step down the gradient in all coefficients of the active set.

    S = {v != 0} and the latent chosen last,   g = D_S . r on S,   c = g D_S
    s = c . r / |c|^2 = |g|^2 / |c|^2          (0 where c = 0),    v <- max(v + s g, 0)

(Blumensath and Davies 2008, "Gradient pursuits", section III, with the exact step length; the bound at 0 for
non-negative coefficients is from Smith 2024.) It costs little more than matching pursuit and comes close to orthogonal
pursuit. With the Gram matrix G of the directions, g = b - G v and |c|^2 = g G g, so no product with D is needed.

Sharp edges: S is formed from the coefficients at every step, so a latent that the bound sets to 0 leaves it. After such
a step the error may be larger than before.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mechjax.sae.pursuit.active_set import Problem, multiply


def update(problem: Problem, nonnegative: bool) -> jax.Array:
  """New coefficients, [A, B]."""
  gram, v_AxB = problem.gram_AxAxB, problem.values_AxB
  g_AxB = jnp.where(problem.active_AxB, problem.products_AxB - multiply(gram, v_AxB), 0)
  down_B = jnp.sum(jnp.square(g_AxB), 0)
  length_B = jnp.sum(g_AxB * multiply(gram, g_AxB), 0)
  step_B = jnp.where(length_B > 0, down_B / jnp.where(length_B > 0, length_B, 1), 0)
  new_AxB = v_AxB + step_B[None] * g_AxB
  return jnp.maximum(new_AxB, 0) if nonnegative else new_AxB
