"""One decoder for the GPT-2, GPT-NeoX, Llama, Qwen, Mistral and Gemma families, scanned over its layers.

Upstream code is run for fidelity; this decoder is for speed. The layers are one `lax.scan` over stacked parameters, so
compile time does not grow with depth, a read of k layers costs k activations, and one executable sweeps all layers.
A `Config` holds the differences between families; the differences between the layers of one model (Gemma's local and
global attention) are data that is scanned along with the parameters.

    logits = forward(params, tokens, config)          = unembed(blocks(embed(tokens)))
    x = blocks(params, x, config, start=7, stop=12)   a span of layers, from a residual stream to a residual stream
    logits = forward_from(params, tokens, x, l, config)     the rest of a pass from layer l, which may be traced
    logits, cache = step(params, tokens, cache, config)

All are pure and tagged at every site of `mechjax.sites`. Computation is in the dtype of the parameters; norms,
softmax and logits are at least float32 (`mechjax.precision`). `unroll=True` unrolls the layers, for tests and for
loops that carry values from layer to layer.

Letters: B batch, T position, D model, V vocabulary, L layers; the others are in `config` and `attention`.

Sharp edges:
  - With a cache, k, v, attn_scores and attn_probs span all slots of the cache, empty ones included.
  - A token or a learned position outside its table, negative ones included, becomes NaN.
  - There is no resid_mid if attention and MLP are parallel or there is no MLP, and attn_raw and mlp_raw exist only
    with post-norms; the error for a request says so.
  - A scan that starts later than layer 0 still counts from 0 and skips the layers below, so its sites have the right
    numbers and can be planted; the sites below an int `start` do not exist. Reading is an error, because a skipped
    layer has no value; use `unroll=True` to read.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors, harvest, precision, sites
from mechjax.models import ids, rotary
from mechjax.models.attention import KV, Cache, PassContext, attend
from mechjax.models.config import Config, Llama3Scaling
from mechjax.models.norms import norm, soft_cap
from mechjax.models.parameters import init, shapes
from mechjax.models.visibility import Tokens, number

__all__ = [
  'Cache',
  'Config',
  'Llama3Scaling',
  'blocks',
  'embed',
  'forward',
  'forward_from',
  'init',
  'new_cache',
  'shapes',
  'step',
  'unembed',
]

ACTIVATIONS = {
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  'silu': jax.nn.silu,
  'relu': jax.nn.relu,
}


def forward(
  params: dict[str, Any],
  tokens_BxT: jax.Array,
  config: Config,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  checkpoint: bool = False,
  unroll: bool = False,
) -> jax.Array:
  """Next-token logits.

  Args:
    params: as `shapes` describes them.
    tokens_BxT: token ids, int [B, T].
    config: the description.
    positions: position of each token in rotary or learned embeddings, int [B, T]; by default its order in its segment.
    segments: int or bool [B, T]: a token sees tokens of its own segment only, and 0 or False is padding. A padding
      mask is one such array, the numbering of texts packed into one row another.
    checkpoint: whether the backward pass recomputes layers instead of saving their intermediate values.
    unroll: whether the layers are unrolled instead of scanned.

  Returns:
    Logits, float32 [B, T, V].

  Raises:
    MechjaxError: if tokens are not integers, shapes do not fit, or a text is longer than the table of learned
      positions.
  """
  ids.check_kind(tokens_BxT)
  context, positions = _pass_context(
    tokens_BxT.shape, config, positions, segments, None, _dtype(params)
  )
  x_BxTxD = _embed(params, tokens_BxT, config, positions)
  span = (0, config.n_layers)
  x_BxTxD, _ = _blocks(params, x_BxTxD, config, context, None, span, checkpoint, unroll)
  return unembed(params, x_BxTxD, config)


def step(
  params: dict[str, Any],
  tokens_BxT: jax.Array,
  cache: Cache,
  config: Config,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  unroll: bool = False,
) -> tuple[jax.Array, Cache]:
  """Next-token logits of tokens that follow those in a cache.

  Args: as `forward`; positions and orders continue from the cache. `cache` comes from `new_cache` or an earlier step.

  Returns:
    Logits, float32 [B, T, V], and the cache with these tokens added. A cache that is not used again can be donated.

  Raises:
    MechjaxError: as `forward`, or if the cache is full (where its length is known).
  """
  ids.check_kind(tokens_BxT)
  n_slots = cache.tokens.segment.shape[1]
  if not isinstance(cache.length, jax.core.Tracer) and cache.length + tokens_BxT.shape[1] > n_slots:
    raise errors.MechjaxError(
      f'{tokens_BxT.shape[1]} tokens do not fit after {cache.length} in a cache of {n_slots}',
      hint='call new_cache(config, batch, n_slots) with as many slots as there will be tokens',
    )
  context, positions = _pass_context(
    tokens_BxT.shape, config, positions, segments, cache, _dtype(params)
  )
  x_BxTxD = _embed(params, tokens_BxT, config, positions)
  span = (0, config.n_layers)
  x_BxTxD, new_LxBxTxKxH = _blocks(params, x_BxTxD, config, context, cache.kv, span, False, unroll)
  update = jax.lax.dynamic_update_slice_in_dim
  kv = KV(*(update(old, x, cache.length, axis=2) for old, x in zip(cache.kv, new_LxBxTxKxH)))
  cache = Cache(kv, context.keys, cache.length + tokens_BxT.shape[1])
  return unembed(params, x_BxTxD, config), cache


def new_cache(config: Config, batch: int, n_slots: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache for `n_slots` tokens in each of `batch` rows, in the dtype of the parameters."""
  size = (config.n_layers, batch, n_slots, config.n_kv_heads, config.d_head)
  empty = lambda: jnp.zeros((batch, n_slots), jnp.int32)  # noqa: E731
  kv = KV(jnp.zeros(size, dtype), jnp.zeros(size, dtype))
  return Cache(kv, Tokens(empty(), empty()), jnp.int32(0))


def embed(
  params: dict[str, Any],
  tokens_BxT: jax.Array,
  config: Config,
  *,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
) -> jax.Array:
  """The residual stream before the first layer, [B, T, D]; arguments as in `forward`."""
  ids.check_kind(tokens_BxT)
  _, positions = _pass_context(tokens_BxT.shape, config, positions, segments, None, _dtype(params))
  return _embed(params, tokens_BxT, config, positions)


def blocks(
  params: dict[str, Any],
  x_BxTxD: jax.Array,
  config: Config,
  *,
  start: int = 0,
  stop: int | None = None,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  checkpoint: bool = False,
  unroll: bool = False,
) -> jax.Array:
  """Runs a span of layers.

  Args:
    params: of the whole model.
    x_BxTxD: the residual stream entering layer `start`.
    config: the description.
    start: the first layer, an int.
    stop: one more than the last layer; None for all remaining layers.
    positions, segments, checkpoint, unroll: as in `forward`.

  Returns:
    The residual stream leaving layer `stop - 1`, [B, T, D].

  Raises:
    MechjaxError: if there is no such span, or shapes do not fit.
  """
  stop = config.n_layers if stop is None else stop
  if not 0 <= start <= stop <= config.n_layers:
    raise errors.MechjaxError(
      f'there is no span of layers from layer {start} to {stop} of {config.n_layers}'
    )
  context, _ = _pass_context(x_BxTxD.shape[:2], config, positions, segments, None, _dtype(params))
  return _blocks(params, x_BxTxD, config, context, None, (start, stop), checkpoint, unroll)[0]


def forward_from(
  params: dict[str, Any],
  tokens_BxT: jax.Array,
  x_BxTxD: jax.Array,
  start: jax.Array | int,
  config: Config,
  *,
  at: jax.Array | None = None,
  segments: jax.Array | None = None,
  unroll: bool = False,
) -> jax.Array:
  """Next-token logits of a pass whose residual stream is known up to a layer.

  A sweep of patches runs the same prompts thousands of times, and nothing changes below the patched layer. Starting at
  that layer halves the cost on average, with one executable for all layers.

  Args:
    params: of the whole model.
    tokens_BxT: token ids, int [B, T].
    x_BxTxD: the residual stream entering layer `start`; not used if `start` is 0, where the tokens are embedded.
    start: the first layer, an integer that may be traced. Layers below are skipped.
    config: the description.
    at: columns whose logits are computed, int [B, A]; None for all.
    segments: as in `forward`.
    unroll: whether the layers are unrolled, from a `start` that is not traced. Then the program does not contain the
      layers below, and the sites of the others can be read as well as written; every `start` is compiled.

  Returns:
    Logits, float32 [B, T, V], or [B, A, V] with `at`; then 'final_norm' and 'logits' are sites of those positions.

  Raises:
    MechjaxError: if shapes do not fit, or a `start` that is to be unrolled is traced or not a layer.
  """
  ids.check_kind(tokens_BxT)
  if unroll and not (isinstance(start, int) and 0 <= start <= config.n_layers):
    raise errors.MechjaxError(
      f'start={start!r:.100} of a pass with unroll=True',
      cause='the number of unrolled layers is a part of the program',
      hint=f'an integer from 0 to n_layers={config.n_layers}, or unroll=False',
    )
  context, positions = _pass_context(tokens_BxT.shape, config, None, segments, None, _dtype(params))
  if isinstance(start, int):
    x_BxTxD = _without_layers_below(x_BxTxD, start)
  x_BxTxD = jnp.where(start == 0, _embed(params, tokens_BxT, config, positions), x_BxTxD)
  x_BxTxD, _ = _blocks(
    params,
    x_BxTxD,
    config,
    context,
    None,
    (start if unroll else jnp.asarray(start, jnp.int32), config.n_layers),
    False,
    unroll,
  )
  if at is not None:
    x_BxTxD = x_BxTxD[jnp.arange(len(x_BxTxD))[:, None], at]
  return unembed(params, x_BxTxD, config)


def unembed(params: dict[str, Any], x: jax.Array, config: Config) -> jax.Array:
  """Logits, float32 [..., V], of a residual stream [..., D], by the final norm and the head."""
  if config.final_norm:
    x = harvest.sow(norm(x, params['final_norm'], config), name='final_norm')
  equation, kernel = '...d,dv->...v', None
  if config.tied:
    equation, kernel = '...d,vd->...v', params['embed']['tokens']
  else:
    kernel = params['unembed']['kernel']
  wide = precision.wide_dtype(x.dtype)
  logits = precision.einsum(equation, x, kernel, preferred_element_type=wide)
  if config.unembed_bias:
    logits += params['unembed']['bias'].astype(wide)
  return harvest.sow(soft_cap(logits, config.logit_softcap), name='logits')


# --- inside -----------------------------------------------------------------------------------------------


def _dtype(params: dict[str, Any]) -> Any:
  return jax.tree.leaves(params['layers'])[0].dtype


def _pass_context(
  shape: tuple[int, ...],
  config: Config,
  positions: jax.Array | None,
  segments: jax.Array | None,
  cache: Cache | None,
  dtype: Any,
) -> tuple[PassContext, jax.Array]:
  """The context that all layers share, and the positions, [B, T] or [1, T]."""
  queries = keys = number(segments, shape, None if cache is None else cache.tokens)
  slot = None
  if cache is not None:
    slot, update = cache.length, jax.lax.dynamic_update_slice_in_dim
    keys = Tokens(*(update(old, new, slot, axis=1) for old, new in zip(cache.tokens, queries)))
  if positions is None:
    # Padding has position 0: beyond the table of learned positions it would be NaN, and NaN times 0 is NaN.
    positions = queries.order
    if segments is not None:
      positions = jnp.where(queries.segment > 0, positions, 0)
    if config.n_positions and segments is None and cache is None and shape[1] > config.n_positions:
      raise errors.MechjaxError(f'{shape[1]} tokens for {config.n_positions} learned positions')
  elif positions.shape not in (shape, (1, shape[1])):
    raise errors.MechjaxError(f'positions have shape {positions.shape}, the tokens {shape}')
  if config.positions != 'rotary':
    return PassContext(queries, keys, slot, None), positions
  kinds = (
    rotary.angles(config, positions, False, dtype),
    rotary.angles(config, positions, True, dtype),
  )
  return PassContext(queries, keys, slot, kinds), positions


def _embed(
  params: dict[str, Any], tokens_BxT: jax.Array, config: Config, positions: jax.Array
) -> jax.Array:
  table = params['embed']
  x_BxTxD = jnp.take(table['tokens'], ids.replace_negative(tokens_BxT), axis=0) * config.embed_scale
  if config.positions == 'learned':
    x_BxTxD += jnp.take(table['positions'], ids.replace_negative(positions), axis=0)
  return harvest.sow(x_BxTxD, name='embed')


def _blocks(
  params: dict[str, Any],
  x_BxTxD: jax.Array,
  config: Config,
  context: PassContext,
  cached: KV | None,
  span: tuple[Any, int],
  checkpoint: bool,
  unroll: bool,
) -> tuple[jax.Array, Any]:
  """Layers span[0] to span[1] - 1; with a cache, also their keys and values [L, B, T, K, H].

  A cache needs a span of all layers; without a cache, the first layer of a span may be traced.
  """
  mixed = any(config.local) and not all(config.local)
  kinds = np.array(config.local) if mixed else None

  def body(x, layer):
    p, kind, kv = layer
    x, new = _layer(p, x, config, context, any(config.local) if kind is None else kind, kv)
    return x, None if kv is None else new

  if checkpoint:
    body = jax.checkpoint(body, prevent_cse=unroll)
  stacks = (params['layers'], kinds, cached)
  if unroll:
    return _unroll(body, x_BxTxD, stacks, span)
  start, stop = span
  if isinstance(start, int):
    x_BxTxD = _without_layers_below(x_BxTxD, start)
  from_the_first = isinstance(start, int) and start == 0
  if from_the_first and stop == config.n_layers:
    return jax.lax.scan(body, x_BxTxD, stacks)
  # Indexed inside the scan: a slice of the stacks would be a copy of the layers' parameters.
  layer = lambda x, i: body(x, jax.tree.map(lambda a: jnp.asarray(a)[i], stacks))  # noqa: E731
  if from_the_first:
    return jax.lax.scan(layer, x_BxTxD, jnp.arange(stop))

  def run_or_skip(x, i):
    return jax.lax.cond(i >= start, lambda x: layer(x, i)[0], lambda x: x, x), None

  return jax.lax.scan(run_or_skip, x_BxTxD, jnp.arange(stop, dtype=jnp.int32))


def _unroll(body: Any, x: jax.Array, stacks: Any, span: tuple[int, int]) -> tuple[Any, Any]:
  news = []
  for i in range(*span):
    with sites.layer(i):
      x, new = body(x, jax.tree.map(lambda a, i=i: a[i], stacks))
    news.append(new)
  return x, jax.tree.map(lambda *xs: jnp.stack(xs), *news) if news else None


def _layer(
  p: dict[str, Any],
  x_BxTxD: jax.Array,
  config: Config,
  context: PassContext,
  local: jax.Array | bool,
  cached: KV | None,
) -> tuple[jax.Array, KV]:
  """One block: the residual stream after it, and the keys and values of these tokens."""
  x_BxTxD = harvest.sow(x_BxTxD, name='resid_pre')
  h_BxTxD = harvest.sow(norm(x_BxTxD, p.get('attn_norm'), config), name='attn_norm')
  attn_out_BxTxD, new = attend(p['attn'], h_BxTxD, config, context, local, cached)
  attn_out_BxTxD = _post_norm(attn_out_BxTxD, p.get('attn_post_norm'), config, 'attn')
  if not config.d_mlp:
    return harvest.sow(_without_mlp_sites(x_BxTxD + attn_out_BxTxD), name='resid_post'), new
  if config.parallel:
    mlp_out_BxTxD = _mlp(p, _without_resid_mid(x_BxTxD), config)
    return harvest.sow(x_BxTxD + attn_out_BxTxD + mlp_out_BxTxD, name='resid_post'), new
  x_BxTxD = harvest.sow(x_BxTxD + attn_out_BxTxD, name='resid_mid')
  return harvest.sow(x_BxTxD + _mlp(p, x_BxTxD, config), name='resid_post'), new


def _mlp(p: dict[str, Any], x_BxTxD: jax.Array, config: Config) -> jax.Array:
  """The output of the MLP, which is added to the residual stream."""
  h_BxTxD = harvest.sow(norm(x_BxTxD, p.get('mlp_norm'), config), name='mlp_norm')
  w = p['mlp']
  act = ACTIVATIONS[config.activation]
  if config.gated:
    gate_BxTxF = harvest.sow(_affine(w, 'gate', h_BxTxD), name='mlp_pre')
    post_BxTxF = act(gate_BxTxF) * _affine(w, 'up', h_BxTxD)
  else:
    post_BxTxF = act(harvest.sow(_affine(w, 'up', h_BxTxD), name='mlp_pre'))
  post_BxTxF = harvest.sow(post_BxTxF, name='mlp_post')
  return _post_norm(_affine(w, 'down', post_BxTxF), p.get('mlp_post_norm'), config, 'mlp')


def _post_norm(
  raw_BxTxD: jax.Array, p: dict[str, jax.Array] | None, config: Config, part: str
) -> jax.Array:
  """The output of the attention or the MLP as it is added to the residual stream."""
  if p is None:
    cause = 'the model has no norm between this part and the residual stream'
    marked = harvest.absent(raw_BxTxD, names=[f'{part}_raw'], cause=cause, hint=f'use {part}_out')
    return harvest.sow(marked, name=f'{part}_out')
  raw_BxTxD = harvest.sow(raw_BxTxD, name=f'{part}_raw')
  return harvest.sow(norm(raw_BxTxD, p, config), name=f'{part}_out')


def _affine(w: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
  bias = w.get(f'{name}_bias')
  out = precision.matmul(x, w[name])
  return out if bias is None else out + bias


# --- absent sites -----------------------------------------------------------------------------------------


def _without_resid_mid(x: jax.Array) -> jax.Array:
  cause = 'attention and MLP are parallel: both read resid_pre, and nothing lies between them'
  return harvest.absent(x, names=['resid_mid'], cause=cause, hint='use resid_pre or resid_post')


def _without_layers_below(x: jax.Array, start: int) -> jax.Array:
  names = [n for n in sites.CANONICAL if n not in ('embed', 'final_norm', 'logits')]
  cause = f'the pass begins at layer {start}, and the layers below are skipped'
  hint = 'use a layer that runs, or an earlier start'
  return harvest.absent(
    x, names=names if start else [], cause=cause, hint=hint, layers=range(start)
  )


def _without_mlp_sites(x: jax.Array) -> jax.Array:
  names = [n for n in sites.CANONICAL if n.startswith('mlp_') or n == 'resid_mid']
  cause = 'this is an attention-only model'
  return harvest.absent(x, names=names, cause=cause, hint='use attn_out or resid_post')
