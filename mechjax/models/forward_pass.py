"""A forward pass as pure functions: the interface between the modules that run a model and `LanguageModel`.

Our own decoder (`ours`) and the upstream codes (`shipped` and the modules that use it) each return a `Forward`. Code
without a cache generates through `without_cache`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mechjax import generate
from mechjax.models.config import Config


@dataclasses.dataclass(frozen=True)
class Forward:
  """A forward pass as pure functions; every module that drives a code base returns one.

  Attributes:
    params: pytree of arrays.
    apply: (params, tokens [B, T], mask=None) -> logits float32 [B, T, V].
    unembed: (params, residual [..., D]) -> logits [..., V], by the model's own final norm and head.
    n_layers: number of blocks.
    d_model: D.
    n_vocab: V, the number of rows of the embedding; some ids may have no text in the tokenizer.
    config: the description of our own decoder; None for upstream codes.
    generator: a step with a cache; None if the code does not have a cache that we drive.
    forward_from: (params, tokens [B, T], residual [B, T, D], start, at, mask=None) -> logits of a pass that begins at
      layer `start`, whose residual stream is known, at columns `at` or all; None if the code does not support it. With
      unroll=True `start` is an integer, and sites of the pass can be read.
    forward_until: (params, tokens [B, T], stop, mask) -> the residual stream before layer `stop`, [B, T, D], computed
      by the layers below alone; None if the code unrolls its layers, so that a compiler removes layers that are not
      read.
  """

  params: Any
  apply: Callable[..., jax.Array]
  unembed: Callable[[Any, jax.Array], jax.Array]
  n_layers: int
  d_model: int
  n_vocab: int
  config: Config | None = None
  generator: generate.Model | None = None
  forward_from: Callable[..., jax.Array] | None = None
  forward_until: Callable[[Any, jax.Array, int, Any], jax.Array] | None = None


def without_cache(apply: Callable[..., jax.Array]) -> generate.Model:
  """Generation by any causal forward pass: every step is a pass over the whole text so far.

  Args:
    apply: (params, tokens [B, T]) -> logits [B, T, V].
  """

  def step(params: Any, tokens: jax.Array, mask: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    del mask, cache  # padding comes after the tokens, which do not see it
    return apply(params, tokens), None

  return generate.Model(step, None)
