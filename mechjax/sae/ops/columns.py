"""The largest numbers of each column, as many as its budget: the selection of a feature choice dictionary.

    chosen = largest_of_columns(z_BxM, budgets_M)          bool [B, M], exactly budgets_M[i] True in column i

A sort of a batch of 4,096 x 6,144 along tokens takes longer than its matrix products. The smallest chosen number of a
column is found by bisection over its bits instead: 32 counts of a block of columns that stays in the cache, for all
columns of the block at once. Budgets can be traced and differ between columns. Of equal numbers the first tokens are
chosen; a second bisection finds the last of them, only if a block has such a tie at the limit.

Sharp edges: NaN counts as the largest number. With latents sharded over devices use `blocked=False`, which counts over
whole columns; a block is a slice that would be gathered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

BLOCK_BYTES = 1 << 20


def largest_of_columns(
  z_BxM: Float[Array, 'B M'], budgets_M: Int[Array, ' M'], blocked: bool = True
) -> Bool[Array, 'B M']:
  """Marks the largest numbers of each column.

  Args:
    z_BxM: numbers of any sign.
    budgets_M: how many to mark, from 1 to B.
    blocked: whether columns are processed in blocks.
  """
  z_BxM = lax.stop_gradient(z_BxM)
  B, M = z_BxM.shape
  size = max(1, min(M, BLOCK_BYTES // (B * z_BxM.dtype.itemsize))) if blocked else M
  if size == M:
    limit, last = _limits(z_BxM, budgets_M)
  else:
    count = -(-M // size)
    first = jnp.minimum(jnp.arange(count) * size, M - size)  # the last block overlaps its neighbour

    def block(at: jax.Array) -> tuple[jax.Array, jax.Array]:
      z = lax.dynamic_slice_in_dim(z_BxM, at, size, 1)
      return _limits(z, lax.dynamic_slice_in_dim(budgets_M, at, size))

    where = first[:, None] + jnp.arange(size)
    limit, last = (
      jnp.zeros(M, found.dtype).at[where].set(found) for found in lax.map(block, first)
    )
  order = _sort_key(z_BxM)
  token = jnp.arange(B, dtype=jnp.int32)[:, None]
  return (order > limit) | ((order == limit) & (token < last))


def _limits(z_BxM: jax.Array, budgets_M: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Smallest chosen number of each column, as its sort key, and the token before which ties are chosen."""
  order = _sort_key(z_BxM)
  integer = order.dtype
  bits = jnp.iinfo(integer).bits

  def count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask, 0, dtype=jnp.int32)

  def settle(n: jax.Array, found: jax.Array) -> jax.Array:
    larger = found | lax.shift_left(jnp.ones((), integer), (bits - 2 - n).astype(integer))
    return jnp.where(count(order >= larger) >= budgets_M, larger, found)

  lowest = jnp.asarray(jnp.iinfo(integer).min, integer)
  start = jnp.where(count(order >= 0) >= budgets_M, jnp.zeros((), integer), lowest)
  limit = lax.fori_loop(0, bits - 1, settle, start)
  B = len(order)
  token = jnp.arange(B, dtype=jnp.int32)[:, None]

  def cut() -> jax.Array:
    wanted = budgets_M - count(order > limit)
    tied = order == limit
    n_bits = B.bit_length()

    def settle(n: jax.Array, found: jax.Array) -> jax.Array:
      larger = found | lax.shift_left(jnp.int32(1), (n_bits - 1 - n).astype(jnp.int32))
      return jnp.where(count(tied & (token < larger)) <= wanted, larger, found)

    return lax.fori_loop(0, n_bits, settle, jnp.zeros_like(wanted))

  whole = jnp.full(limit.shape, B, jnp.int32)
  return limit, lax.cond(jnp.any(count(order >= limit) > budgets_M), cut, lambda: whole)


def _sort_key(z: jax.Array) -> jax.Array:
  """Signed integers in the order of floating-point numbers."""
  bits = jnp.finfo(z.dtype).bits
  integer = jnp.dtype(f'int{bits}')
  as_integer = lax.bitcast_convert_type(z, integer)
  sign = lax.shift_right_arithmetic(as_integer, jnp.asarray(bits - 1, integer))
  return as_integer ^ (sign & jnp.asarray(jnp.iinfo(integer).max, integer))
