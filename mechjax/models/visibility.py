"""Visible keys: which tokens a query attends to.

Padding, packing several texts into a row, sliding windows and the cache of a generation are four reasons why a
query does not see a key. Two integers per token decide all four: its segment, and its order in the segment (the
number of tokens of the same segment before it). A query sees a key if the segments are equal and
0 <= order of query - order of key < window. So a window is a number, which may differ from layer to layer inside
one scan, and padding may stand anywhere, even between a prompt and the generated tokens.

The order is counted and not taken from `positions`: these place a token in rotary and learned embeddings, and
changing them for an experiment must not let a token see its future.

Letters: B batch, T query, S key.

Sharp edges: a masked score is MASKED and not -inf, so that differences of scores stay finite. Padding is a segment
of its own and sees itself; the values computed there are meaningless.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mechjax import errors

MASKED = -1e30
"""Score of a key that is not visible."""

_AT_ONCE = 512
"""Number of tokens that are compared with all others at once; of a longer text a block after the other."""


class Tokens(NamedTuple):
  """Segment (text) of each token, and the number of tokens of that segment before it: int32 [B, T].

  If every row is a single text, `segment` is None, and B is 1.
  """

  segment: Any
  order: jax.Array


def number(
  segments: jax.Array | None, shape: tuple[int, ...], cached: Tokens | None = None
) -> Tokens:
  """Numbers the tokens of a call.

  Args:
    segments: int or bool [B, T]; 0 or False is padding. None if every row is a single text.
    shape: (B, T).
    cached: the tokens that were read before, if any.

  Returns:
    See `Tokens`.

  Raises:
    MechjaxError: if `segments` has another shape.
  """
  if segments is None and cached is None:
    return Tokens(None, jnp.arange(shape[1], dtype=jnp.int32)[None])
  if segments is None:
    segments = jnp.ones(shape, jnp.int32)
  if segments.shape != shape:
    raise errors.MechjaxError(f'segments have shape {segments.shape}, the tokens {shape}')
  segment_BxT = segments.astype(jnp.int32)
  order = _count_matches(segment_BxT, segment_BxT, jnp.arange(shape[1]))
  if cached is not None:
    n_slots = cached.segment.shape[1]
    order += _count_matches(segment_BxT, cached.segment, jnp.full(shape[1], n_slots))
  return Tokens(segment_BxT, order)


def _count_matches(segment_BxT: jax.Array, others_BxS: jax.Array, end_T: jax.Array) -> jax.Array:
  """Number of the other tokens, in the columns before `end`, that have the segment of each token: int32 [B, T]."""
  columns_S = jnp.arange(others_BxS.shape[1])

  def count(token: tuple[jax.Array, jax.Array]) -> jax.Array:
    segment_B, end = token
    same_BxS = (segment_B[:, None] == others_BxS) & (columns_S < end)
    return same_BxS.sum(-1, dtype=jnp.int32)

  tokens = segment_BxT.T, end_T
  if len(end_T) <= _AT_ONCE:
    return jax.vmap(count)(tokens).T
  return jax.lax.map(count, tokens, batch_size=_AT_ONCE).T


def visible(queries: Tokens, keys: Tokens, window: jax.Array | int | None) -> jax.Array:
  """Attention mask, bool [B, T, S]: True where a query sees a key."""
  distance_BxTxS = queries.order[:, :, None] - keys.order[:, None]
  seen_BxTxS = distance_BxTxS >= 0
  if queries.segment is not None and keys.segment is not None:
    seen_BxTxS &= queries.segment[:, :, None] == keys.segment[:, None]
  return seen_BxTxS if window is None else seen_BxTxS & (distance_BxTxS < window)
