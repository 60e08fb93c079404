"""Gemma 3 out of a GGUF file, in the layouts of google-tunix and of Google's gemma package.

See `names` for the rules of such maps. Two things are particular to this family. GGUF stores norm
weights with one added, so that every reader multiplies alike; the JAX implementations add the one
themselves, so here it is taken off again. And the header leaves out what llama.cpp knows by heart:
five local layers to a global one, and 10000 as the rotary base of the local ones.

No rows are permuted: unlike llama's, Gemma's converter leaves queries and keys in halves.

Shapes: D model, F mlp, N query heads, K key-value heads, H per head, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mechjax import errors
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.names import (
  Sizes,
  Tensors,
  epsilon,
  header,
  mlp,
  mlp_kernels,
  rope_scale,
  sizes,
)

# Of 6 layers, the last is global.
PERIOD = 6


@dataclasses.dataclass(frozen=True)
class Gemma3Shape(Sizes):
  """The sizes and constants of a Gemma 3 text model.

  Attributes:
    window: how many positions a local layer sees, its own included.
    local_rope_base: base of the rotary frequencies in local layers.
    global_rope_base: the same in global layers.
    global_rope_scale: by which positions are divided in global layers.
  """

  window: int
  local_rope_base: float
  global_rope_base: float
  global_rope_scale: float


def gemma3_shape(file: GGUFFile) -> Gemma3Shape:
  """Reads the sizes out of a gemma3-architecture GGUF header.

  Args:
    file: an open file.

  Returns:
    The sizes.

  Raises:
    WeightsError: another architecture, or one of the variants that the JAX classes cannot compute
      from these sizes alone.
  """
  plain, s = sizes(file, 'gemma3'), header(file, 'gemma3')
  shape = Gemma3Shape(
    **plain,
    window=s.integer('attention.sliding_window'),
    local_rope_base=10_000.0,
    global_rope_base=s.number('rope.freq_base'),
    global_rope_scale=rope_scale(s),
  )
  eps = epsilon(s)
  if not np.isclose(eps, 1e-6):
    raise errors.WeightsError(f'{file.path} has epsilon {eps} in its norms; the classes have 1e-6')
  if shape.n_heads == shape.n_kv_heads or shape.n_layers == 62:
    raise errors.WeightsError(
      f'{file.path} has {shape.n_layers} layers, {shape.n_heads} heads and {shape.n_kv_heads} '
      'key-value heads',
      cause='queries of the 27B model are scaled otherwise, and heads that share nothing are stored '
      'otherwise; this name map writes neither',
    )
  return shape


def tunix_gemma3(
  file: GGUFFile, shape: Gemma3Shape, put: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
  """The parameters of google-tunix's Gemma3 class.

  Args:
    file: an open file.
    shape: its sizes, from `gemma3_shape`.
    put: applied to each part of the tree as soon as it is read, such as `jax.device_put`.

  Returns:
    Nested dict of float32 arrays in the structure of the class's pure state.

  Raises:
    WeightsError: a tensor is missing, has another shape, or is one that the map does not know.
  """
  ends, layers = _read(file, shape, mlp_kernels, put)
  return {**ends, 'layers': dict(enumerate(layers))}


def linen_gemma3(
  file: GGUFFile, shape: Gemma3Shape, put: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
  """The parameters of the gemma package's Transformer, built with `transpose_gating_einsum`.

  Args, Returns, Raises: as `tunix_gemma3`.
  """

  def einsums(gate_FxD: np.ndarray, up_FxD: np.ndarray, down_DxF: np.ndarray) -> dict[str, Any]:
    return {'gating_einsum': np.stack([gate_FxD, up_FxD]), 'linear': down_DxF.T}

  ends, layers = _read(file, shape, einsums, put)
  return {**ends, **{f'layer_{i}': layer for i, layer in enumerate(layers)}}


def _read(
  file: GGUFFile, shape: Gemma3Shape, mlp_tree: Callable, put: Callable
) -> tuple[dict[str, Any], list[Any]]:
  """What the two layouts share, which is all but the names of layers and of the MLP's weights."""
  tensors = Tensors(file)
  D, V = shape.d_model, shape.n_vocab
  ends = {
    'embedder': put({'input_embedding': tensors.take('token_embd.weight', V, D)}),
    'final_norm': put({'scale': tensors.take('output_norm.weight', D) - 1}),
  }
  layers = [put(_layer(tensors, f'blk.{i}', shape, mlp_tree)) for i in range(shape.n_layers)]
  tensors.check_all_taken()
  return ends, layers


def _layer(tensors: Tensors, blk: str, shape: Gemma3Shape, mlp_tree: Callable) -> dict[str, Any]:
  D, N, K, H = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head

  def take(name: str, *size: int) -> np.ndarray:
    return tensors.take(f'{blk}.{name}.weight', *size)

  def heads(name: str, n: int) -> np.ndarray:
    return take(name, n * H, D).reshape(n, H, D).swapaxes(1, 2)

  def norm(name: str, size: int) -> dict[str, np.ndarray]:
    return {'scale': take(name, size) - 1}

  return {
    'pre_attention_norm': norm('attn_norm', D),
    'attn': {
      'q_einsum': {'w': heads('attn_q', N)},
      'kv_einsum': {'w': np.stack([heads('attn_k', K), heads('attn_v', K)])},
      '_query_norm': norm('attn_q_norm', H),
      '_key_norm': norm('attn_k_norm', H),
      'attn_vec_einsum': {'w': take('attn_output', D, N * H).T.reshape(N, H, D)},
    },
    'post_attention_norm': norm('post_attention_norm', D),
    'pre_ffw_norm': norm('ffn_norm', D),
    'mlp': mlp_tree(*mlp(tensors, blk, shape)),
    'post_ffw_norm': norm('post_ffw_norm', D),
  }
