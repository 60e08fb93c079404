"""Code that the modules for upstream code bases share.

Each of these modules loads the weights of a file into upstream's own classes and returns pure
functions: `forward(file)` returns a `Forward`. This module holds their common parts.

The patch of a code base is found from an installation and from a checkout: an installed mechjax has its
patches as `mechjax.patches`, a checkout that was never installed has the same files as `patches`.

Letters in shapes: B batch, T position, S slot of a cache.

Sharp edge: a patch is installed when the first model is loaded and stays; without a harvest it is
the identity.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mechjax import generate, precision
from mechjax.greenlets import local_context
from mechjax.models import ids, padding
from mechjax.models.forward_pass import Forward
from mechjax.weights.names import Sizes


def patch(name: str) -> ModuleType:
  """The module `patches/<name>.py`."""
  try:
    return importlib.import_module(f'mechjax.patches.{name}')
  except ModuleNotFoundError as e:
    if e.name != 'mechjax.patches':
      raise
    return importlib.import_module(f'patches.{name}')


def forward(
  shape: Sizes,
  params: Any,
  apply: Callable,
  unembed: Callable,
  *structure: Any,
  step: Callable | None = None,
  new_layers: Callable[[Any, int, int], Any] | None = None,
) -> Forward:
  """A forward pass, from functions of upstream's structure and the arguments in `Forward`.

  Its matrix products are as precise as our own (`mechjax.precision`), and a row with an id outside the vocabulary is
  NaN.

  Args:
    shape: sizes of the model.
    params, apply, unembed: as in `Forward`; the functions take `structure` first.
    *structure: first arguments of the functions.
    step: a pass with upstream's own cache: (*structure, params, tokens [B, T], positions [B, T], seen [B, T, S],
      layers) -> (logits, layers); None if there is no cache.
    new_layers: (params, rows, slots) -> upstream's empty cache.
  """
  generator = None
  if step is not None and new_layers is not None:
    generator = _generator(shape.n_vocab, functools.partial(step, *structure), new_layers)
  return Forward(
    params=params,
    apply=_Apply(functools.partial(apply, *structure), shape.n_vocab),
    unembed=functools.partial(_unembed, functools.partial(unembed, *structure)),
    n_layers=shape.n_layers,
    d_model=shape.d_model,
    n_vocab=shape.n_vocab,
    generator=generator,
  )


class UpstreamCache(NamedTuple):
  """A cache of upstream code, whose slots are filled in order.

  Attributes:
    layers: upstream's own.
    real_BxS: which slots hold real tokens.
    length: number of slots in use.
  """

  layers: Any
  real_BxS: jax.Array
  length: jax.Array


def _generator(
  n_vocab: int, upstream: Callable, new_layers: Callable[[Any, int, int], Any]
) -> generate.Model:
  def step(params: Any, tokens: jax.Array, mask: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    T, S = tokens.shape[1], cache.real_BxS.shape[1]
    real_BxS = jax.lax.dynamic_update_slice_in_dim(cache.real_BxS, mask, cache.length, axis=1)
    slot_T = cache.length + jnp.arange(T, dtype=jnp.int32)
    seen_BxTxS = real_BxS[:, None] & (jnp.arange(S, dtype=jnp.int32) <= slot_T[:, None])
    positions_BxT = cache.real_BxS.sum(1, dtype=jnp.int32)[:, None] + padding.positions(mask)
    with local_context(precision.highest):
      logits, layers = upstream(params, tokens, positions_BxT, seen_BxTxS, cache.layers)
    return ids.nan_without_token(logits, tokens), UpstreamCache(layers, real_BxS, cache.length + T)

  def new_cache(params: Any, rows: int, slots: int) -> UpstreamCache:
    layers = new_layers(params, rows, slots)
    return UpstreamCache(layers, jnp.zeros((rows, slots), bool), jnp.int32(0))

  return generate.Model(step, new_cache)


def google_cache(
  shape: Sizes, rows: int, slots: int, dtype: Any = jnp.float32
) -> dict[str, dict[str, jax.Array]]:
  """An empty cache of google-tunix; arrays of their own for each layer, since a cache is donated."""
  size = (rows, slots, shape.n_kv_heads, shape.d_head)
  return {
    f'layer_{i}': {
      'k': jnp.zeros(size, dtype),
      'v': jnp.zeros(size, dtype),
      'end_index': jnp.zeros(rows, jnp.int32),
    }
    for i in range(shape.n_layers)
  }


class _Apply:
  """(params, tokens, mask=None) -> logits."""

  def __init__(self, upstream: Callable, n_vocab: int):
    self.upstream, self.n_vocab = upstream, n_vocab

  def __call__(self, params: Any, tokens: jax.Array, mask: Any = None) -> jax.Array:
    ids.check_kind(tokens)
    option = {} if mask is None else {'mask': mask}  # not every code accepts a mask
    with local_context(precision.highest):
      logits = self.upstream(params, tokens, **option)
    return ids.nan_without_token(logits, tokens)

  def check_arguments(self, params: Any, tokens: jax.Array, mask: Any = None) -> None:
    """Rejects ids outside the vocabulary before a harvest traces them, since upstream's sites have values for them."""
    ids.check_ids(tokens, self.n_vocab)


def _unembed(upstream: Callable, params: Any, residual: jax.Array) -> jax.Array:
  with local_context(precision.highest):
    return upstream(params, residual)


def google_sizes(shape: Sizes) -> dict[str, int]:
  """The sizes, under the names in the configurations of google-tunix and of the gemma package."""
  return {
    'embed_dim': shape.d_model,
    'hidden_dim': shape.d_mlp,
    'num_heads': shape.n_heads,
    'head_dim': shape.d_head,
    'num_kv_heads': shape.n_kv_heads,
  }


def causal_mask(
  tokens: jax.Array, mask: Any = None, dtype: Any = jnp.int32
) -> tuple[jax.Array, jax.Array]:
  """Positions [B, T] of tokens in their texts, and the mask of columns that each token sees, bool [B, T, T].

  Raises:
    MechjaxError: the mask does not fit, or a row has padding between its tokens.
  """
  B, T = tokens.shape
  seen_BxTxT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
  if mask is None:
    return jnp.broadcast_to(jnp.arange(T, dtype=dtype), (B, T)), seen_BxTxT
  mask = padding.check_mask(mask, tokens.shape)
  padding.check_contiguous(mask)
  mask_BxT = jnp.asarray(mask)
  return padding.positions(mask_BxT).astype(dtype), seen_BxTxT & mask_BxT[:, None]
