"""SmolLM2 and other llamas inside the unmodified Qwen2 class of google-tunix.

The point of mechjax is code that somebody else wrote, so the default model runs in one: tunix's
Qwen2, untouched, with its biases at zero. This module only drives it. The class is built
abstractly (no random initialisation is computed), its structure is split off once, and a pure
function merges it with whatever parameters it is given, at trace time, where merging is free.

Sharp edges: the class wants its positions and its causal mask handed in. Positions are float32,
which holds every integer that occurs and spares upstream's einsum an implicit promotion. The
instrumentation is installed when the first model is loaded and stays; without a harvest it is the
identity.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import extras
from mechjax.models.language_model import Forward
from mechjax.weights import names
from mechjax.weights.gguf import GGUFFile


def forward(file: GGUFFile) -> Forward:
  """Reads a llama-architecture file into tunix's Qwen2.

  Args:
    file: an open file.

  Returns:
    Its parameters and pure functions.

  Raises:
    WeightsError: the file is not a plain llama.
    MissingExtraError: google-tunix is not installed.
  """
  shape = names.llama_shape(file)
  graphdef, state = _structure(shape)
  params = names.tunix_qwen2(file, shape, jax.device_put)
  return Forward(
    params=params,
    apply=functools.partial(_apply, graphdef, state),
    unembed=functools.partial(_unembed, graphdef, state),
    n_layers=shape.n_layers,
    d_model=shape.d_model,
  )


def _structure(shape: names.LlamaShape) -> tuple[Any, Any]:
  """Graph definition and abstract state of the instrumented class."""
  upstream = extras.require('tunix.models.qwen2.model', 'upstream')
  nnx = importlib.import_module('flax.nnx')
  _instrumentation().install()
  config = upstream.ModelConfig(
    num_layers=shape.n_layers,
    vocab_size=shape.n_vocab,
    embed_dim=shape.d_model,
    hidden_dim=shape.d_mlp,
    num_heads=shape.n_heads,
    head_dim=shape.d_head,
    num_kv_heads=shape.n_kv_heads,
    rope_theta=shape.rope_base,
    norm_eps=shape.norm_eps,
    use_tied_embedding=shape.tied,
  )
  return nnx.split(nnx.eval_shape(lambda: upstream.Qwen2(config, rngs=nnx.Rngs(0))))


def _instrumentation() -> Any:
  """The patcher: under its installed name, or from a checkout that was never installed."""
  try:
    module = importlib.import_module('mechjax.patches.tunix')
  except ModuleNotFoundError as e:
    if e.name != 'mechjax.patches':
      raise
    module = importlib.import_module('patches.tunix')
  return module.PATCHER


def _merge(graphdef: Any, state: Any, params: Any) -> Any:
  """The module with the given parameters in it; `state` lends its structure and is not changed."""
  nnx = importlib.import_module('flax.nnx')
  state = jax.tree.map(lambda leaf: leaf, state)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


def _apply(graphdef: Any, state: Any, params: Any, tokens: jax.Array) -> jax.Array:
  B, T = tokens.shape
  positions_BxT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (B, T))
  causal_BxTxT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
  logits, _ = _merge(graphdef, state, params)(tokens, positions_BxT, None, causal_BxTxT)
  return logits


def _unembed(graphdef: Any, state: Any, params: Any, residual: jax.Array) -> jax.Array:
  module = _merge(graphdef, state, params)
  normed = module.final_norm(residual)
  # lm_head is an einsum over [B, T, D]; a residual may have any leading axes.
  flat_1xNxD = normed.reshape(1, -1, normed.shape[-1])
  decode = module.embedder.decode if module.config.use_tied_embedding else module.lm_head
  return decode(flat_1xNxD).reshape(*residual.shape[:-1], -1)
