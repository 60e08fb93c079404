"""Attention: the mask of visible keys, and the weighted sum of their values.

Padding, packing several texts into a row, sliding windows and the cache of a generation are four reasons why a
query does not see a key. Two integers per token decide all four: its segment, and its order in the segment (the
number of tokens of the same segment before it). A query sees a key if the segments are equal and
0 <= order of query - order of key < window. So a window is a number, which may differ from layer to layer inside
one scan, and padding may stand anywhere, even between a prompt and the generated tokens.

The order is counted and not taken from `positions`: these place a token in rotary and learned embeddings, and
changing them for an experiment must not let a token see its future.

Letters: B batch, T query, S key, D model, N query heads, K key-value heads, G = N/K, H head, L layers.

Sharp edges: a masked score is MASKED and not -inf, so that differences of scores stay finite. Padding is a segment
of its own and sees itself; the values computed there are meaningless.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mechjax import errors, harvest, precision
from mechjax.models import rotary
from mechjax.models.config import Config
from mechjax.models.norms import rms

MASKED = -1e30
"""Score of a key that is not visible."""


class Tokens(NamedTuple):
  """Segment (text) of each token, and the number of tokens of that segment before it: int32 [B, T].

  If every row is a single text, `segment` is None, and B is 1.
  """

  segment: Any
  order: jax.Array


class KV(NamedTuple):
  """Keys (after rotary) and values: [B, S, K, H], or with a leading L."""

  k: jax.Array
  v: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens that a generation has read.

  Attributes:
    kv: of all layers, [L, B, S, K, H], as they were before any intervention at 'k' and 'v' (a planted intervention
      is applied again at every step).
    tokens: segment and order of the token in each slot; segment 0 where a slot is empty.
    length: number of the S slots that are in use, int32 scalar.
  """

  kv: KV
  tokens: Tokens
  length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PassContext:
  """Inputs that all layers of a forward pass share.

  Attributes:
    queries, keys: tokens of the queries and of the keys; the same unless there is a cache.
    slot: first slot of the cache for the keys of this call; None without a cache.
    angles: rotary angles of global layers, then of local layers; None without rotary positions.
  """

  queries: Tokens
  keys: Tokens
  slot: jax.Array | None
  angles: tuple[rotary.Angles, rotary.Angles] | None


def number(
  segments: jax.Array | None, shape: tuple[int, ...], cache: Cache | None = None
) -> Tokens:
  """Numbers the tokens of a call.

  Args:
    segments: int or bool [B, T]; 0 or False is padding. None if every row is a single text.
    shape: (B, T).
    cache: the tokens that were read before, if any.

  Returns:
    See `Tokens`.

  Raises:
    MechjaxError: if `segments` has another shape.
  """
  if segments is None and cache is None:
    return Tokens(None, jnp.arange(shape[1], dtype=jnp.int32)[None])
  if segments is None:
    segments = jnp.ones(shape, jnp.int32)
  if segments.shape != shape:
    raise errors.MechjaxError(f'segments have shape {segments.shape}, the tokens {shape}')
  segment_BxT = segments.astype(jnp.int32)
  order = _count_matches(segment_BxT, segment_BxT, earlier=True)
  if cache is not None:
    order += _count_matches(segment_BxT, cache.tokens.segment, earlier=False)
  return Tokens(segment_BxT, order)


def _count_matches(segment_BxT: jax.Array, others_BxS: jax.Array, earlier: bool) -> jax.Array:
  """Number of the other tokens that have the segment of each token."""
  same_BxTxS = segment_BxT[:, :, None] == others_BxS[:, None]
  if earlier:
    same_BxTxS &= jnp.tri(same_BxTxS.shape[1], k=-1, dtype=bool)
  return same_BxTxS.sum(-1, dtype=jnp.int32)


def visible(queries: Tokens, keys: Tokens, window: jax.Array | int | None) -> jax.Array:
  """Attention mask, bool [B, T, S]: True where a query sees a key."""
  distance_BxTxS = queries.order[:, :, None] - keys.order[:, None]
  seen_BxTxS = distance_BxTxS >= 0
  if queries.segment is not None and keys.segment is not None:
    seen_BxTxS &= queries.segment[:, :, None] == keys.segment[:, None]
  return seen_BxTxS if window is None else seen_BxTxS & (distance_BxTxS < window)


def attend(
  p: dict[str, Any],
  h_BxTxD: jax.Array,
  config: Config,
  context: PassContext,
  local: jax.Array | bool,
  cached: KV | None,
) -> tuple[jax.Array, KV]:
  """Multi-head attention.

  Args:
    p: one layer's 'attn'.
    h_BxTxD: the normalised residual stream.
    config: the description.
    context: see `PassContext`.
    local: whether the layer is local; inside a scan, a traced boolean.
    cached: the layer's cache, or None.

  Returns:
    The sum of the heads' outputs, [B, T, D], and the keys and values of these tokens.
  """
  q = _project(p, 'q', h_BxTxD)
  k = _project(p, 'k', h_BxTxD)
  v = _project(p, 'v', h_BxTxD)
  if config.qk_norm:
    q, k = (rms(x, p[n], config) for x, n in ((q, 'q_norm'), (k, 'k_norm')))
  if context.angles is not None:
    angles = _select_kind(local, context.angles)
    q, k = rotary.rotate(q, angles), rotary.rotate(k, angles)
  new = KV(k, v)
  if cached is not None:
    k, v = (_append(old, x, context.slot) for old, x in zip(cached, new))
  q_BxTxNxH = harvest.sow(q, name='q')
  k_BxSxKxH = harvest.sow(k, name='k')
  v_BxSxKxH = harvest.sow(v, name='v')

  scores_BxNxTxS = _scores(q_BxTxNxH, k_BxSxKxH, config)
  seen_BxTxS = visible(context.queries, context.keys, _window(config, local))
  # Added, not selected: an addition saves no residuals for the backward pass.
  scores_BxNxTxS += jnp.where(seen_BxTxS, 0.0, MASKED)[:, None]
  scores_BxNxTxS = harvest.sow(scores_BxNxTxS, name='attn_scores')
  probs_BxNxTxS = jax.nn.softmax(scores_BxNxTxS, axis=-1).astype(v.dtype)
  probs_BxNxTxS = harvest.sow(probs_BxNxTxS, name='attn_probs')
  z_BxTxNxH = harvest.sow(_mix(probs_BxNxTxS, v_BxSxKxH), name='z')
  out_BxTxD = precision.einsum('btnh,nhd->btd', z_BxTxNxH, p['o'])
  return (out_BxTxD + p['o_bias'] if config.o_bias else out_BxTxD), new


def _project(p: dict[str, Any], name: str, h_BxTxD: jax.Array) -> jax.Array:
  out_BxTxNxH = precision.einsum('btd,dnh->btnh', h_BxTxD, p[name])
  bias = p.get(f'{name}_bias')
  return out_BxTxNxH if bias is None else out_BxTxNxH + bias


def _select_kind(local: jax.Array | bool, both: tuple[Any, Any]) -> Any:
  """The second element of a pair in local layers, the first in global layers."""
  if isinstance(local, bool):
    return both[local]
  return jax.tree.map(lambda g, l: jax.lax.select(local, l, g), *both)


def _window(config: Config, local: jax.Array | bool) -> jax.Array | int | None:
  if isinstance(local, bool):
    return config.window if local else None
  return jnp.where(local, config.window or 0, jnp.iinfo(jnp.int32).max)


def _append(cache_BxSxKxH: jax.Array, x_BxTxKxH: jax.Array, slot: Any) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(cache_BxSxKxH, x_BxTxKxH, slot, axis=1)


def _scores(q_BxTxNxH: jax.Array, k_BxSxKxH: jax.Array, config: Config) -> jax.Array:
  """Scaled and capped scores, float32 (or float64) [B, N, T, S]; heads of a group are adjacent."""
  B, T, N, H = q_BxTxNxH.shape
  S, K = k_BxSxKxH.shape[1:3]
  q_BxTxKxGxH = q_BxTxNxH.reshape(B, T, K, N // K, H)
  wide = precision.wide_dtype(q_BxTxNxH.dtype)
  scores = precision.einsum(
    'btkgh,bskh->bkgts', q_BxTxKxGxH, k_BxSxKxH, preferred_element_type=wide
  )
  scores = scores.reshape(B, N, T, S) * config.score_scale
  return soft_cap(scores, config.attn_softcap)


def _mix(probs_BxNxTxS: jax.Array, v_BxSxKxH: jax.Array) -> jax.Array:
  """Weighted sum of the values that each head sees: [B, T, N, H]."""
  B, N, T, S = probs_BxNxTxS.shape
  K, H = v_BxSxKxH.shape[2:]
  probs_BxKxGxTxS = probs_BxNxTxS.reshape(B, K, N // K, T, S)
  return precision.einsum('bkgts,bskh->btkgh', probs_BxKxGxTxS, v_BxSxKxH).reshape(B, T, N, H)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap * tanh(x / cap): close to x for small x, and bounded by the cap; `x` itself without a cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)
