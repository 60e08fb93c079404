"""Code that the modules for upstream code bases share.

Each of these modules loads the weights of a file into upstream's own classes and returns pure
functions: `forward(file)` returns a `Forward`. This module holds their common parts.

The patch of a code base is found from an installation and from a checkout: an installed mechjax has its
patches as `mechjax.patches`, a checkout that was never installed has the same files as `patches`.

Letters in shapes: B batch, T position.

Sharp edge: a patch is installed when the first model is loaded and stays; without a harvest it is
the identity.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import precision
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
  shape: Sizes, params: Any, apply: Callable, unembed: Callable, *structure: Any
) -> Forward:
  """A forward pass, from functions of upstream's structure and the arguments in `Forward`.

  Its matrix products are as precise as our own (`mechjax.precision`), and a row with an id outside the vocabulary is
  NaN.
  """
  return Forward(
    params=params,
    apply=_Apply(functools.partial(apply, *structure), shape.n_vocab),
    unembed=functools.partial(_unembed, functools.partial(unembed, *structure)),
    n_layers=shape.n_layers,
    d_model=shape.d_model,
    n_vocab=shape.n_vocab,
  )


class _Apply:
  """(params, tokens, **options of upstream's function) -> logits."""

  def __init__(self, upstream: Callable, n_vocab: int):
    self.upstream, self.n_vocab = upstream, n_vocab

  def __call__(self, params: Any, tokens: jax.Array, **options: Any) -> jax.Array:
    ids.check_kind(tokens)
    with local_context(precision.highest):
      logits = self.upstream(params, tokens, **options)
    return ids.nan_without_token(logits, tokens)

  def check_arguments(self, params: Any, tokens: jax.Array, **options: Any) -> None:
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
