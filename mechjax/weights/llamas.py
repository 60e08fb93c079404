"""Llamas out of a GGUF file, in the layouts of transformers' Flax classes and of penzai.

See `names` for the rules of such maps, which are the same here: every tensor of the file is used,
every shape stated. A tied unembedding is not stored twice: the trees leave it out, and the code
that runs them takes the embedding.

Shapes: D model, F mlp, N query heads, K key-value heads, H per head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mechjax.weights.gguf import GGUFFile
from mechjax.weights.names import LlamaShape, Tensors, mlp, mlp_kernels, qkv


def flax_llama(
  file: GGUFFile, shape: LlamaShape, put: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
  """The parameters of transformers' FlaxLlamaForCausalLM.

  Args:
    file: an open file.
    shape: its sizes, from `names.llama_shape`.
    put: applied to each part of the tree as soon as it is read, such as `jax.device_put`.

  Returns:
    Nested dict of float32 arrays, as in linen's collection 'params'.

  Raises:
    WeightsError: a tensor is missing, has another shape, or is one that the map does not know.
  """
  D, V = shape.d_model, shape.n_vocab
  tensors = Tensors(file)
  layers = {str(i): put(_flax_layer(tensors, f'blk.{i}', shape)) for i in range(shape.n_layers)}
  params: dict[str, Any] = {
    'model': {
      'embed_tokens': put({'embedding': tensors.take('token_embd.weight', V, D)}),
      'layers': layers,
      'norm': put({'weight': tensors.take('output_norm.weight', D)}),
    }
  }
  if not shape.tied:
    params['lm_head'] = put({'kernel': tensors.take('output.weight', V, D).T})
  tensors.check_all_taken()
  return params


def _flax_layer(tensors: Tensors, blk: str, shape: LlamaShape) -> dict[str, Any]:
  D, width = shape.d_model, shape.n_heads * shape.d_head
  query, key, value = qkv(tensors, blk, shape)
  return {
    'input_layernorm': {'weight': tensors.take(f'{blk}.attn_norm.weight', D)},
    'self_attn': {
      'q_proj': {'kernel': query.T},
      'k_proj': {'kernel': key.T},
      'v_proj': {'kernel': value.T},
      'o_proj': {'kernel': tensors.take(f'{blk}.attn_output.weight', D, width).T},
    },
    'post_attention_layernorm': {'weight': tensors.take(f'{blk}.ffn_norm.weight', D)},
    'mlp': mlp_kernels(*mlp(tensors, blk, shape)),
  }


def penzai_llama(
  file: GGUFFile, shape: LlamaShape, put: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
  """The parameters of penzai's llama-like transformer, by label.

  Args:
    file: an open file.
    shape: its sizes, from `names.llama_shape`.
    put: as for `flax_llama`.

  Returns:
    Dict of float32 arrays from labels without the model's name ('block_3/mlp/out_linear.weights').
    Axes are outputs, then inputs, and heads are split: query [K, N/K, H, D], key and value
    [K, H, D], output [D, K, N/K, H].

  Raises:
    WeightsError: a tensor is missing, has another shape, or is one that the map does not know.
  """
  D, V = shape.d_model, shape.n_vocab
  tensors = Tensors(file)
  params = {
    'embedder.embeddings': put(tensors.take('token_embd.weight', V, D)),
    'final_norm/scale.weights': put(tensors.take('output_norm.weight', D)),
  }
  for i in range(shape.n_layers):
    layer = put(_penzai_layer(tensors, f'blk.{i}', shape))
    params |= {f'block_{i}/{label}': array for label, array in layer.items()}
  if not shape.tied:
    params['lm_head.weights'] = put(tensors.take('output.weight', V, D))
  tensors.check_all_taken()
  return params


def _penzai_layer(tensors: Tensors, blk: str, shape: LlamaShape) -> dict[str, np.ndarray]:
  D, N, K, H = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head
  query, key, value = qkv(tensors, blk, shape)
  gate, up, down = mlp(tensors, blk, shape)
  output = tensors.take(f'{blk}.attn_output.weight', D, N * H)
  return {
    'pre_attention_norm/scale.weights': tensors.take(f'{blk}.attn_norm.weight', D),
    'attention/query.weights': query.reshape(K, N // K, H, D),
    'attention/key.weights': key.reshape(K, H, D),
    'attention/value.weights': value.reshape(K, H, D),
    'attention/output.weights': output.reshape(D, K, N // K, H),
    'pre_ffw_norm/scale.weights': tensors.take(f'{blk}.ffn_norm.weight', D),
    'mlp/gating_linear.weights': gate,
    'mlp/value_linear.weights': up,
    'mlp/out_linear.weights': down,
  }
