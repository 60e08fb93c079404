"""The next latent of each token: the one dense product of a step.

A pursuit adds the direction d_i, of unit length, whose product with what is left to reconstruct is largest,

    i = argmax_i d_i . r      or      argmax_i |d_i . r|  where coefficients may be negative

(Mallat and Zhang 1993, section III). The products of a block of tokens are computed with the tokens last, [M, B], so
that the maximum is taken over the first axis: XLA on CPU then compares whole vectors of tokens. A maximum followed by a
search for the first number that equals it takes two fast passes, where an argmax is a slow one.

Sharp edges: of equal products the first latent counts. A NaN in a token makes its maximum NaN, which the caller has to
look at; its index is valid and has no meaning.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from mechjax import precision


def choose(
  units_MxD: Float[Array, 'M D'], r_BxD: Float[Array, 'B D'], nonnegative: bool
) -> tuple[Int32[Array, ' B'], Float[Array, ' B']]:
  """Chooses the next latent of each token.

  Args:
    units_MxD: directions, of unit length.
    r_BxD: the part of each activation that is left to reconstruct.
    nonnegative: whether products are compared with their signs.

  Returns:
    Indices of the latents, and the products, or their absolute values, that made them the choice.
  """
  z_MxB = precision.matmul(units_MxD, r_BxD.T)
  if not nonnegative:
    z_MxB = jnp.abs(z_MxB)
  size_B = jnp.max(z_MxB, 0)
  number_MxB = lax.broadcasted_iota(jnp.int32, z_MxB.shape, 0)
  last = jnp.int32(len(units_MxD) - 1)
  return jnp.min(jnp.where(z_MxB == size_B[None], number_MxB, last), 0), size_B


def normalise(W_MxD: Float[Array, 'M D']) -> tuple[jax.Array, jax.Array]:
  """Rows of unit length, [M, D], and the lengths of the given rows, [M]; a row of zeros stays zero."""
  length_M = jnp.linalg.norm(W_MxD, axis=1)
  return W_MxD / jnp.where(length_M > 0, length_M, 1)[:, None], length_M
