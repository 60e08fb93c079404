"""The loop of all pursuits, on the few latents that a token has chosen.

The textbook form has weights [B, M] and three products of B x M x D per step. At most k of the M weights are not zero,
so here a token has k slots, and a step makes one product of that size, for the choice (`choice`). The rest are products
with the chosen directions D_S [A, D], which are kept in a buffer together with their Gram matrix:

    i = choose(r)                            slot n of step n receives d_i, its products with D_S and with x
    values = update(values, Gram, b)         the method; b = D_S x
    r = x - values D_S                       computed anew, so that errors do not add up

The gradient of a method on its active set is b - Gram values, which needs no product with D. Tokens are processed in
blocks (`ops.sparse.map_blocks`), and within a block the tokens are the last axis of all small arrays, along which XLA
on CPU computes with vectors. Nothing has the shape [tokens, M] except within a block.

Prefixes. The state after n steps is the answer for k = n, so one run serves a whole list of k. It equals separate runs
to the last bit by construction: slots come in segments of 8, 16, 32, ... whatever the largest k is, so that each
step is the same program on arrays of the same shapes, and the number of steps is data, which XLA cannot specialise on.

Sharp edges. Where the largest product is zero except for rounding (`ROUNDING`), nothing is chosen, so a token may have
fewer than k active latents; slots without a value have value 0 and any index. A latent that is chosen again uses
the slot that it has. A NaN in an activation makes all its values NaN. A pursuit has no derivative.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.sae.pursuit.choice import choose

FIRST_SEGMENT = 8
ROWS_OF_BLOCK = 32
"""Directions per token for which the size of a block leaves room, whatever k is."""
ROUNDING = 32
"""Products up to this number of rounding units of |x| are zero except for rounding."""


class Problem(NamedTuple):
  """Coefficients of a block of tokens to update, after the choice of a latent.

  Attributes:
    values_AxB: coefficients so far; 0 in a slot that is not in use.
    target_AxB: slot of the latent chosen last, at most one for each token, bool.
    product_B: product of that latent with r.
    gram_AxAxB: products of the directions in the slots with each other.
    products_AxB: products of the directions in the slots with x.
    n_slots: number of slots filled so far.
  """

  values_AxB: jax.Array
  target_AxB: jax.Array
  product_B: jax.Array
  gram_AxAxB: jax.Array
  products_AxB: jax.Array
  n_slots: jax.Array

  @property
  def active_AxB(self) -> jax.Array:
    """S: latents with a coefficient, and the one chosen last."""
    return (self.values_AxB != 0) | self.target_AxB


Update = Callable[[Problem], jax.Array]
"""A method: new coefficients, [A, B]."""


class _Slots(NamedTuple):
  """State of a block; `rows_BxAxD` are the directions in the slots, an index of -1 is an empty slot."""

  indices_AxB: jax.Array
  values_AxB: jax.Array
  rows_BxAxD: jax.Array
  gram_AxAxB: jax.Array
  products_AxB: jax.Array
  r_BxD: jax.Array


def multiply(gram_AxAxB: Float[Array, 'A A B'], v_AxB: Float[Array, 'A B']) -> jax.Array:
  """Gram v for each token, [A, B]."""
  return jnp.sum(gram_AxAxB * v_AxB[None], 1)


def width_of(k: int) -> int:
  """Number of slots of the segment in which step k is made: 8, 16, 32, ..."""
  return max(FIRST_SEGMENT, 1 << (k - 1).bit_length())


def pursue(
  units_MxD: Float[Array, 'M D'],
  x_BxD: Float[Array, 'B D'],
  n_steps: jax.Array,
  levels: Sequence[int],
  update: Update,
  nonnegative: bool,
) -> list[tuple[jax.Array, jax.Array]]:
  """Runs a pursuit on a block of tokens.

  Args:
    units_MxD: directions, of unit length.
    x_BxD: activations, without b_dec.
    n_steps: maximum number of steps, int32.
    levels: increasing numbers of steps after which the state is wanted.
    update: the method.
    nonnegative: whether coefficients are at least 0.

  Returns:
    Values and indices [B, k] for each level k.
  """
  # Otherwise the compiler would treat loops of few steps in another way, and round otherwise.
  n_steps = lax.optimization_barrier(n_steps)
  step = _make_step(units_MxD, x_BxD, update, nonnegative)
  segments = (FIRST_SEGMENT << n for n in range(levels[-1].bit_length()))
  edges = sorted({*levels, *(width for width in segments if width < levels[-1])})
  slots, found = _start(x_BxD), []
  for low, high in itertools.pairwise([0, *edges]):
    slots = _grow(slots, width_of(high))
    slots = lax.fori_loop(low, jnp.minimum(high, n_steps), step, slots)
    if high in levels:
      found.append((slots.values_AxB[:high].T, jnp.maximum(slots.indices_AxB[:high].T, 0)))
  return found


def _make_step(
  units_MxD: jax.Array, x_BxD: jax.Array, update: Update, nonnegative: bool
) -> Callable[[jax.Array, _Slots], _Slots]:
  limit_B = ROUNDING * float(jnp.finfo(x_BxD.dtype).eps) * jnp.linalg.norm(x_BxD, axis=1)

  def step(n: jax.Array, slots: _Slots) -> _Slots:
    index_B, size_B = choose(units_MxD, slots.r_BxD, nonnegative)
    row_BxD = units_MxD[index_B]
    product_B = size_B if nonnegative else jnp.sum(row_BxD * slots.r_BxD, 1)
    slots = _fill(slots, n, index_B, row_BxD, x_BxD)
    has_choice_B = ~(jnp.abs(size_B) <= limit_B)  # True for NaN
    target_AxB = _first_equal(slots.indices_AxB, index_B) & has_choice_B[None]
    gram_AxAxB, products_AxB = slots.gram_AxAxB, slots.products_AxB
    values_AxB = update(
      Problem(slots.values_AxB, target_AxB, product_B, gram_AxAxB, products_AxB, n + 1)
    )
    values_AxB = jnp.where(jnp.isnan(size_B)[None], jnp.nan, values_AxB)
    explained_BxD = precision.einsum('ab,bad->bd', values_AxB, slots.rows_BxAxD)
    return slots._replace(values_AxB=values_AxB, r_BxD=x_BxD - explained_BxD)

  return step


def _start(x_BxD: jax.Array) -> _Slots:
  (B, D), A, dtype = x_BxD.shape, FIRST_SEGMENT, x_BxD.dtype
  return _Slots(
    indices_AxB=jnp.full((A, B), -1, jnp.int32),
    values_AxB=jnp.zeros((A, B), dtype),
    rows_BxAxD=jnp.zeros((B, A, D), dtype),
    gram_AxAxB=jnp.zeros((A, A, B), dtype),
    products_AxB=jnp.zeros((A, B), dtype),
    r_BxD=x_BxD,
  )


def _grow(slots: _Slots, width: int) -> _Slots:
  """More slots, all empty."""
  more = width - len(slots.indices_AxB)
  return _Slots(
    indices_AxB=jnp.pad(slots.indices_AxB, ((0, more), (0, 0)), constant_values=-1),
    values_AxB=jnp.pad(slots.values_AxB, ((0, more), (0, 0))),
    rows_BxAxD=jnp.pad(slots.rows_BxAxD, ((0, 0), (0, more), (0, 0))),
    gram_AxAxB=jnp.pad(slots.gram_AxAxB, ((0, more), (0, more), (0, 0))),
    products_AxB=jnp.pad(slots.products_AxB, ((0, more), (0, 0))),
    r_BxD=slots.r_BxD,
  )


def _fill(
  slots: _Slots, n: jax.Array, index_B: jax.Array, row_BxD: jax.Array, x_BxD: jax.Array
) -> _Slots:
  """Puts a latent into slot n; a token that has it already will not use this slot."""
  put = lax.dynamic_update_index_in_dim
  rows_BxAxD = put(slots.rows_BxAxD, row_BxD, n, 1)
  cross_AxB = precision.einsum('bad,bd->ab', rows_BxAxD, row_BxD)
  gram_AxAxB = put(put(slots.gram_AxAxB, cross_AxB, n, 0), cross_AxB, n, 1)
  return slots._replace(
    indices_AxB=put(slots.indices_AxB, index_B, n, 0),
    rows_BxAxD=rows_BxAxD,
    gram_AxAxB=gram_AxAxB,
    products_AxB=put(slots.products_AxB, jnp.sum(row_BxD * x_BxD, 1), n, 0),
  )


def _first_equal(indices_AxB: jax.Array, index_B: jax.Array) -> jax.Array:
  """Mask of the first slot with an index, bool [A, B]."""
  slot_AxB = lax.broadcasted_iota(jnp.int32, indices_AxB.shape, 0)
  last = jnp.int32(len(indices_AxB))
  first_B = jnp.min(jnp.where(indices_AxB == index_B[None], slot_AxB, last), 0)
  return slot_AxB == first_B[None]
