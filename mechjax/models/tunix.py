"""Llamas and Gemma 3 inside the unmodified classes of google-tunix.

The purpose of mechjax is to instrument existing code, so the default model also runs in such code:
SmolLM2 in tunix's Qwen2, unmodified, with its biases at zero, and Gemma 3 in the class of its name.
This module only drives them. A class is built abstractly (no random initialisation is computed), its
structure is split off once, and a pure function merges it with the parameters that it receives, at
trace time, where merging is free.

Sharp edges: the classes take positions and a causal mask as arguments. Positions are float32, which
holds every integer that occurs and avoids an implicit promotion in upstream's einsum.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import errors, extras
from mechjax.models import shipped
from mechjax.models.forward_pass import Forward
from mechjax.weights import gemma, names, upstream
from mechjax.weights.gguf import GGUFFile


def forward(file: GGUFFile) -> Forward:
  """Reads a file of the llama or gemma3 architecture into the class of its architecture.

  Args:
    file: an open file.

  Returns:
    Its parameters and pure functions.

  Raises:
    WeightsError: the file has another architecture, or a variant that the class cannot compute.
    MissingExtraError: google-tunix is not installed.
  """
  architecture = file.value('general.architecture')
  if architecture not in _FAMILIES:
    known, where = sorted(_FAMILIES), f'{file.path}'
    raise errors.unknown(errors.WeightsError, 'architecture', architecture, known, where=where)
  shape_of, structure_of, params_of = _FAMILIES[architecture]
  shape = shape_of(file)
  return _assemble(shape, structure_of(shape), params_of(file, shape, jax.device_put))


def _assemble(shape: names.Sizes, structure: tuple[Any, Any], params: Any) -> Forward:

  def new_layers(params: Any, rows: int, slots: int) -> Any:
    return shipped.google_cache(shape, rows, slots, jax.tree.leaves(params)[0].dtype)

  return shipped.forward(
    shape, params, _apply, _unembed, *structure, step=_step, new_layers=new_layers
  )


def _qwen2(shape: names.LlamaShape) -> tuple[Any, Any]:
  """Graph definition and abstract state of the instrumented class, for a llama."""
  upstream = extras.require('tunix.models.qwen2.model', 'upstream')
  config = upstream.ModelConfig(
    **shipped.google_sizes(shape),
    num_layers=shape.n_layers,
    vocab_size=shape.n_vocab,
    rope_theta=shape.rope_base,
    norm_eps=shape.norm_eps,
    use_tied_embedding=shape.tied,
  )
  return _structure(upstream.Qwen2, config)


def _gemma3(shape: gemma.Gemma3Shape) -> tuple[Any, Any]:
  """Graph definition and abstract state of the instrumented class, for a Gemma 3."""
  upstream = extras.require('tunix.models.gemma3.model', 'upstream')
  config = upstream.ModelConfig(
    **shipped.google_sizes(shape),
    num_layers=shape.n_layers,
    num_embed=shape.n_vocab,
    sliding_window_size=shape.window,
    local_base_frequency=shape.local_rope_base,
    global_base_frequency=shape.global_rope_base,
    global_scale_factor=shape.global_rope_scale,
    param_dtype=jnp.float32,
  )
  return _structure(upstream.Gemma3, config)


def _structure(cls: Any, config: Any) -> tuple[Any, Any]:
  nnx = importlib.import_module('flax.nnx')
  shipped.patch('tunix').PATCHER.install()
  return nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))


# Architecture -> functions for the sizes of a file, the structure of these sizes, and the parameters of the file.
_FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
  'gemma3': (gemma.gemma3_shape, _gemma3, upstream.tunix_gemma3),
  'llama': (names.llama_shape, _qwen2, upstream.tunix_qwen2),
}


def _merge(graphdef: Any, state: Any, params: Any) -> Any:
  """The module with the given parameters; only the structure of `state` is used, and it is not changed."""
  nnx = importlib.import_module('flax.nnx')
  state = jax.tree.map(lambda leaf: leaf, state)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


def _apply(
  graphdef: Any, state: Any, params: Any, tokens: jax.Array, mask: Any = None
) -> jax.Array:
  positions_BxT, causal_BxTxT = shipped.causal_mask(tokens, mask, jnp.float32)
  logits, _ = _merge(graphdef, state, params)(tokens, positions_BxT, None, causal_BxTxT)
  return logits


def _step(
  graphdef: Any,
  state: Any,
  params: Any,
  tokens: jax.Array,
  positions_BxT: jax.Array,
  seen_BxTxS: jax.Array,
  layers: Any,
) -> tuple[jax.Array, Any]:
  module = _merge(graphdef, state, params)
  with jax.numpy_dtype_promotion('standard'):  # upstream compares the mask with 0
    return module(tokens, positions_BxT.astype(jnp.float32), layers, seen_BxTxS)


def _unembed(graphdef: Any, state: Any, params: Any, residual: jax.Array) -> jax.Array:
  module = _merge(graphdef, state, params)
  normed = module.final_norm(residual)
  # lm_head is an einsum over [B, T, D]; a residual may have any leading axes.
  flat_1xTxD = normed.reshape(1, -1, normed.shape[-1])
  decode = module.lm_head if hasattr(module, 'lm_head') else module.embedder.decode
  return decode(flat_1xTxD).reshape(*residual.shape[:-1], -1)
