"""Attention: the weighted sum of the values of the visible keys.

Which keys a query sees is said in `visibility`. Scores and probabilities are sites, but their size grows with the
square of the length of a text. Over a long text they exist only where they are read or planted; elsewhere `blockwise`
computes the same sum without them.

Letters: B batch, T query, S key, D model, N query heads, K key-value heads, G = N/K, H head, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mechjax import harvest, precision
from mechjax.models import blockwise, rotary
from mechjax.models.blockwise import AttentionRule
from mechjax.models.config import Config
from mechjax.models.norms import rms, soft_cap
from mechjax.models.visibility import MASKED, Tokens, visible

LONG = 1024 * 1024
"""Number of scores of one head, T * S, from which attention runs block by block."""


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

  is_long = q.shape[1] > 1 and q.shape[1] * k.shape[1] >= LONG
  blocks = is_long and not harvest.is_wanted('attn_scores', 'attn_probs')
  mix = blockwise.attend if blocks else _attend_at_once
  rule = AttentionRule(
    config.score_scale, config.attn_softcap, _window(config, local), p.get('sinks')
  )
  z_BxTxNxH = mix(q_BxTxNxH, k_BxSxKxH, v_BxSxKxH, context.queries, context.keys, rule)
  z_BxTxNxH = harvest.sow(z_BxTxNxH, name='z')
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


def _attend_at_once(
  q_BxTxNxH: jax.Array,
  k_BxSxKxH: jax.Array,
  v_BxSxKxH: jax.Array,
  queries: Tokens,
  keys: Tokens,
  rule: AttentionRule,
) -> jax.Array:
  """The same as `blockwise.attend`, by way of all scores and probabilities."""
  B, T, N, H = q_BxTxNxH.shape
  K = k_BxSxKxH.shape[2]
  q_BxTxKxGxH = q_BxTxNxH.reshape(B, T, K, N // K, H)
  wide = precision.wide_dtype(q_BxTxKxGxH.dtype)
  scores_BxKxGxTxS = precision.einsum(
    'btkgh,bskh->bkgts', q_BxTxKxGxH, k_BxSxKxH, preferred_element_type=wide
  )
  scores_BxNxTxS = scores_BxKxGxTxS.reshape(B, N, T, -1) * rule.scale
  scores_BxNxTxS = soft_cap(scores_BxNxTxS, rule.cap)
  seen_BxTxS = visible(queries, keys, rule.window)
  # Added, not selected: an addition saves no residuals for the backward pass.
  scores_BxNxTxS += jnp.where(seen_BxTxS, 0.0, MASKED)[:, None]
  scores_BxNxTxS = harvest.sow(scores_BxNxTxS, name='attn_scores')
  probs_BxNxTxS = _softmax(scores_BxNxTxS, rule.sinks_N).astype(v_BxSxKxH.dtype)
  probs_BxNxTxS = harvest.sow(probs_BxNxTxS, name='attn_probs')
  probs_BxKxGxTxS = probs_BxNxTxS.reshape(B, K, N // K, T, -1)
  return precision.einsum('bkgts,bskh->btkgh', probs_BxKxGxTxS, v_BxSxKxH).reshape(B, T, N, H)


def _softmax(scores_BxNxTxS: jax.Array, sinks_N: jax.Array | None) -> jax.Array:
  """Probabilities of the keys; a sink is the score of nothing, and takes its share of them."""
  if sinks_N is None:
    return jax.nn.softmax(scores_BxNxTxS, axis=-1)
  sinks_Nx1x1 = sinks_N.astype(scores_BxNxTxS.dtype)[:, None, None]
  sink_BxNxTx1 = jnp.broadcast_to(sinks_Nx1x1, (*scores_BxNxTxS.shape[:-1], 1))
  with_sink = jnp.concatenate([scores_BxNxTxS, sink_BxNxTx1], axis=-1)
  return jax.nn.softmax(with_sink, axis=-1)[..., :-1]
