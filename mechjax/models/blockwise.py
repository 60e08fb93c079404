"""Attention over a long text, block by block: the sum of the visible values without the matrix of all scores.

The scores of one layer of SmolLM2-135M over 8,192 tokens take 2.4 GB, and few studies read them. Here a block of
queries meets one block of keys after the other, and only the scores of one pair of blocks exist. Three numbers per
query are carried: the largest score so far, and relative to it the sum of the exponentials and the sum of the
weighted values (Milakov and Gimelshein 2018, algorithm 3; Rabe and Staats 2021).

Pairs of blocks without a visible key are skipped: half of them under a causal mask, nearly all in a sliding window. The
test compares the smallest and largest order and segment of the blocks, so it holds for padding, packed texts and a
cache.

`attention` uses this where a text is long and neither 'attn_scores' nor 'attn_probs' is wanted (`harvest.is_wanted`).
A derivative recomputes each block of queries, so that a backward pass holds one row of blocks at a time.

Letters: B batch, T queries (in a block: of the block), S keys, K key-value heads, G query heads of each, H head.

Sharp edge: sums have another order than in one softmax over all keys, so results differ from it in the last digits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.models.norms import soft_cap
from mechjax.models.visibility import MASKED, Tokens, visible

QUERIES, KEYS = 256, 256
"""Positions of a block. A forward pass of SmolLM2-135M over 1,024 tokens takes 6 % less time than with 128 of each,
which make many small products; the scores of all heads still fit into the cache of a processor."""

_LAST = 2**30
"""An order after every query and, negative, before every key: that of positions that fill up the last block."""


class _Sums(NamedTuple):
  """The carry from one block of keys to the next, for each query; sums are relative to `peak`."""

  peak: jax.Array  # [B, K, G, T], the largest score
  total: jax.Array  # [B, K, G, T], the sum of exponentials
  value: jax.Array  # [B, K, G, T, H], the sum of weighted values


class AttentionRule(NamedTuple):
  """The way from products of queries and keys to probabilities.

  Attributes:
    scale: factor of the products.
    cap: c in c * tanh(scores / c); None for no cap.
    window: a key is visible if it is fewer positions back, an int32 scalar or int; None for no limit.
    sinks_N: the score of nothing in each head, which takes its share of the probabilities; None without sinks.
  """

  scale: float
  cap: float | None = None
  window: jax.Array | int | None = None
  sinks_N: jax.Array | None = None


def attend(
  q_BxTxNxH: Float[Array, 'B T N H'],
  k_BxSxKxH: Float[Array, 'B S K H'],
  v_BxSxKxH: Float[Array, 'B S K H'],
  queries: Tokens,
  keys: Tokens,
  rule: AttentionRule,
) -> Float[Array, 'B T N H']:
  """Sums the values of the visible keys, weighted by the softmax of their scores.

  Args:
    q_BxTxNxH, k_BxSxKxH, v_BxSxKxH: queries, keys and values; the query heads of one key-value head are adjacent.
    queries, keys: their segments and orders.
    rule: see `AttentionRule`.

  Returns:
    The outputs of the heads.
  """
  B, T, N, H = q_BxTxNxH.shape
  K = k_BxSxKxH.shape[2]
  # Blocks in the layout of their products, so that no block is transposed again for each block that it meets.
  q_BxTxKxGxH = q_BxTxNxH.reshape(B, T, K, N // K, H)
  q_blocks = jnp.moveaxis(_split(q_BxTxKxGxH, QUERIES), 2, 4)
  k_blocks = jnp.moveaxis(_split(k_BxSxKxH, KEYS), 2, 4)
  v_blocks = jnp.moveaxis(_split(v_BxSxKxH, KEYS), 2, 3)
  blocks_of_keys = k_blocks, v_blocks, _split_tokens(keys, KEYS, _LAST)

  def of_block(block: tuple[jax.Array, Tokens]) -> jax.Array:
    q_BxKxGxTxH, these = block
    step = functools.partial(_add_block, q_BxKxGxTxH, these, rule)
    sums, _ = jax.lax.scan(step, _start(q_BxKxGxTxH, rule.sinks_N), blocks_of_keys)
    # A position that fills up the last block sees no key.
    total = jnp.where(sums.total == 0, 1, sums.total)
    return (sums.value / total[..., None]).astype(v_BxSxKxH.dtype)

  queries_in_blocks = q_blocks, _split_tokens(queries, QUERIES, -1)
  z = jax.lax.map(jax.checkpoint(of_block, prevent_cse=False), queries_in_blocks)
  return jnp.moveaxis(z, (0, 4), (1, 2)).reshape(B, -1, N, H)[:, :T]


def _start(q_BxKxGxTxH: jax.Array, sinks_N: jax.Array | None) -> _Sums:
  """The sums over no key, and over the sink if there is one."""
  zeros_BxKxGxTxH = precision.wide(q_BxKxGxTxH) * 0  # sharded as the queries
  zeros_BxKxGxT = zeros_BxKxGxTxH[..., 0]
  if sinks_N is None:
    return _Sums(zeros_BxKxGxT + MASKED, zeros_BxKxGxT, zeros_BxKxGxTxH)
  K, G = q_BxKxGxTxH.shape[1:3]
  sink_BxKxGxT = zeros_BxKxGxT + sinks_N.astype(zeros_BxKxGxT.dtype).reshape(K, G, 1)
  peak = jax.lax.stop_gradient(sink_BxKxGxT)
  return _Sums(peak, jnp.exp(sink_BxKxGxT - peak), zeros_BxKxGxTxH)


def _add_block(
  q_BxKxGxTxH: jax.Array,
  queries: Tokens,
  rule: AttentionRule,
  sums: _Sums,
  block: tuple[jax.Array, jax.Array, Tokens],
) -> tuple[_Sums, None]:
  """Adds a block of keys, if one of them is visible."""
  k_BxKxHxS, v_BxKxSxH, keys = block

  def add(sums: _Sums) -> _Sums:
    scores_BxKxGxTxS = _multiply(q_BxKxGxTxH, k_BxKxHxS) * rule.scale
    scores_BxKxGxTxS = soft_cap(scores_BxKxGxTxS, rule.cap)
    seen_BxTxS = visible(queries, keys, rule.window)
    scores_BxKxGxTxS += jnp.where(seen_BxTxS, 0.0, MASKED)[:, None, None]
    peak = jax.lax.stop_gradient(jnp.maximum(sums.peak, scores_BxKxGxTxS.max(-1)))
    weights_BxKxGxTxS = jnp.exp(scores_BxKxGxTxS - peak[..., None])
    kept = jnp.exp(jax.lax.stop_gradient(sums.peak) - peak)
    value = _multiply(weights_BxKxGxTxS.astype(v_BxKxSxH.dtype), v_BxKxSxH)
    total = sums.total * kept + weights_BxKxGxTxS.sum(-1)
    return _Sums(peak, total, sums.value * kept[..., None] + value)

  return jax.lax.cond(_may_see(queries, keys, rule.window), add, lambda sums: sums, sums), None


def _multiply(a_BxKxGxTxH: jax.Array, b_BxKxHxS: jax.Array) -> jax.Array:
  """Products of the matrices of all query heads with that of their key-value head, as one matrix [G * T, ...] each."""
  B, K, G, T, H = a_BxKxGxTxH.shape
  wide = precision.wide_dtype(a_BxKxGxTxH.dtype)
  merged = a_BxKxGxTxH.reshape(B, K, G * T, H)
  out = precision.matmul(merged, b_BxKxHxS, preferred_element_type=wide)
  return out.reshape(B, K, G, T, -1)


def _may_see(queries: Tokens, keys: Tokens, window: Any) -> jax.Array:
  """Whether a query of one block may see a key of another, by the ranges of their orders and segments."""
  first_B, last_B = queries.order.min(-1), queries.order.max(-1)
  possible_B = keys.order.min(-1) <= last_B
  if window is not None:
    possible_B &= first_B - keys.order.max(-1) < window
  if queries.segment is not None and keys.segment is not None:
    possible_B &= queries.segment.min(-1) <= keys.segment.max(-1)
    possible_B &= keys.segment.min(-1) <= queries.segment.max(-1)
  return possible_B.any()


# --- blocks -----------------------------------------------------------------------------------------------


def _split(x: jax.Array, size: int, fill: int = 0) -> jax.Array:
  """Splits axis 1 into blocks, which come first: [blocks, B, size, ...]; the last block is filled up."""
  missing = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _split_tokens(tokens: Tokens, size: int, order: int) -> Tokens:
  """Splits tokens into blocks; what fills up the last block has this order, which sees or is seen by no token."""
  segment = None if tokens.segment is None else _split(tokens.segment, size)
  return Tokens(segment, _split(tokens.order, size, order))
