"""GGUF files in the layouts of other code: google-tunix, transformers' Flax classes, penzai, Google's gemma package.

The same weights have other names, other axes and even another order of rows in every implementation, and a mistake in
any of them gives a model that still produces text, only worse. So each layout is a table (`layouts`), with the shape of
every tensor checked, and it must use every tensor of the file: a bias or a table of rotary frequencies that it does not
have is an error, never silently ignored.

    params = tunix_qwen2(file, llama_shape(file), jax.device_put)

If two lines name one parameter, their tensors are stacked. A line with `zeros` in place of a tensor is an array of
zeros: a llama is a Qwen2 whose query, key and value biases are zero. A tied unembedding is not in the tree, and the
code that runs it uses the embedding.

Sharp edges: llama-family GGUF files have the two halves of each rotary pair side by side in the rows of attn_q and
attn_k (`J 2`); the JAX implementations rotate halves (`2 J`). Gemma's converter does not change these rows, but adds 1
to the weights of norms, which the JAX implementations add themselves.

Letters in shapes: D model, F mlp, N query heads, K key-value heads, G query heads per key-value head, H per head,
J = H / 2, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mechjax.weights.gemma import Gemma3Shape
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.layouts import TensorLine, arrange, lines, whole_shape
from mechjax.weights.names import LlamaShape, Sizes, Tensors

_UNEMBED, _ZEROS = 'output.weight', 'zeros'

_TUNIX_QWEN2 = lines("""
    embedder.input_embedding              token_embd.weight          V D
    layers.{}.input_layernorm.w           blk.{}.attn_norm.weight    D
    layers.{}.attn.q_proj.w               blk.{}.attn_q.weight       (N J 2) D -> D N (2 J)
    layers.{}.attn.k_proj.w               blk.{}.attn_k.weight       (K J 2) D -> D K (2 J)
    layers.{}.attn.v_proj.w               blk.{}.attn_v.weight       (K H) D -> D K H
    layers.{}.attn.o_proj.w               blk.{}.attn_output.weight  D (N H) -> N H D
    layers.{}.attn.q_bias                 zeros                      (N H)
    layers.{}.attn.k_bias                 zeros                      (K H)
    layers.{}.attn.v_bias                 zeros                      (K H)
    layers.{}.post_attention_layernorm.w  blk.{}.ffn_norm.weight     D
    layers.{}.mlp.gate_proj.kernel        blk.{}.ffn_gate.weight     F D -> D F
    layers.{}.mlp.up_proj.kernel          blk.{}.ffn_up.weight       F D -> D F
    layers.{}.mlp.down_proj.kernel        blk.{}.ffn_down.weight     D F -> F D
    final_norm.w                          output_norm.weight         D
    lm_head.w                             output.weight              V D -> D V
""")

_FLAX_LLAMA = lines("""
    model.embed_tokens.embedding                     token_embd.weight          V D
    model.layers.{}.input_layernorm.weight           blk.{}.attn_norm.weight    D
    model.layers.{}.self_attn.q_proj.kernel          blk.{}.attn_q.weight       (N J 2) D -> D (N 2 J)
    model.layers.{}.self_attn.k_proj.kernel          blk.{}.attn_k.weight       (K J 2) D -> D (K 2 J)
    model.layers.{}.self_attn.v_proj.kernel          blk.{}.attn_v.weight       (K H) D -> D (K H)
    model.layers.{}.self_attn.o_proj.kernel          blk.{}.attn_output.weight  D (N H) -> (N H) D
    model.layers.{}.post_attention_layernorm.weight  blk.{}.ffn_norm.weight     D
    model.layers.{}.mlp.gate_proj.kernel             blk.{}.ffn_gate.weight     F D -> D F
    model.layers.{}.mlp.up_proj.kernel               blk.{}.ffn_up.weight       F D -> D F
    model.layers.{}.mlp.down_proj.kernel             blk.{}.ffn_down.weight     D F -> F D
    model.norm.weight                                output_norm.weight         D
    lm_head.kernel                                   output.weight              V D -> D V
""")

_PENZAI_LLAMA = lines("""
    embedder.embeddings                          token_embd.weight          V D
    block_{}/pre_attention_norm/scale.weights    blk.{}.attn_norm.weight    D
    block_{}/attention/query.weights             blk.{}.attn_q.weight       (K G J 2) D -> K G (2 J) D
    block_{}/attention/key.weights               blk.{}.attn_k.weight       (K J 2) D -> K (2 J) D
    block_{}/attention/value.weights             blk.{}.attn_v.weight       (K H) D -> K H D
    block_{}/attention/output.weights            blk.{}.attn_output.weight  D (K G H) -> D K G H
    block_{}/pre_ffw_norm/scale.weights          blk.{}.ffn_norm.weight     D
    block_{}/mlp/gating_linear.weights           blk.{}.ffn_gate.weight     F D
    block_{}/mlp/value_linear.weights            blk.{}.ffn_up.weight       F D
    block_{}/mlp/out_linear.weights              blk.{}.ffn_down.weight     D F
    final_norm/scale.weights                     output_norm.weight         D
    lm_head.weights                              output.weight              V D
""")

_GEMMA3 = """
    embedder.input_embedding            token_embd.weight                  V D
    LAYER.pre_attention_norm.scale      blk.{}.attn_norm.weight            D | -1
    LAYER.attn.q_einsum.w               blk.{}.attn_q.weight               (N H) D -> N D H
    LAYER.attn.kv_einsum.w              blk.{}.attn_k.weight               (K H) D -> K D H
    LAYER.attn.kv_einsum.w              blk.{}.attn_v.weight               (K H) D -> K D H
    LAYER.attn._query_norm.scale        blk.{}.attn_q_norm.weight          H | -1
    LAYER.attn._key_norm.scale          blk.{}.attn_k_norm.weight          H | -1
    LAYER.attn.attn_vec_einsum.w        blk.{}.attn_output.weight          D (N H) -> N H D
    LAYER.post_attention_norm.scale     blk.{}.post_attention_norm.weight  D | -1
    LAYER.pre_ffw_norm.scale            blk.{}.ffn_norm.weight             D | -1
    LAYER.post_ffw_norm.scale           blk.{}.post_ffw_norm.weight        D | -1
    final_norm.scale                    output_norm.weight                 D | -1
"""

_TUNIX_GEMMA3 = lines(_GEMMA3.replace('LAYER', 'layers.{}')) + lines("""
    layers.{}.mlp.gate_proj.kernel  blk.{}.ffn_gate.weight  F D -> D F
    layers.{}.mlp.up_proj.kernel    blk.{}.ffn_up.weight    F D -> D F
    layers.{}.mlp.down_proj.kernel  blk.{}.ffn_down.weight  D F -> F D
""")

_LINEN_GEMMA3 = lines(_GEMMA3.replace('LAYER', 'layer_{}')) + lines("""
    layer_{}.mlp.gating_einsum  blk.{}.ffn_gate.weight  F D
    layer_{}.mlp.gating_einsum  blk.{}.ffn_up.weight    F D
    layer_{}.mlp.linear         blk.{}.ffn_down.weight  D F -> F D
""")

Put = Callable[[Any], Any]
"""Function applied to each parameter once it is read, such as `jax.device_put`, so that the host never holds all."""


def _identity(array: Any) -> Any:
  return array


def tunix_qwen2(file: GGUFFile, shape: LlamaShape, put: Put = _identity) -> dict[str, Any]:
  """The parameters of google-tunix's Qwen2 class, from a llama-architecture file.

  Args:
    file: an open file.
    shape: its sizes, from `llama_shape`.
    put: see `Put`.

  Returns:
    Nested dict of float32 arrays in the structure of the class's pure state.

  Raises:
    WeightsError: a tensor is missing, has another shape, or is not in the table.
  """
  return _nest(_read(file, _TUNIX_QWEN2, shape, put), int)


def flax_llama(file: GGUFFile, shape: LlamaShape, put: Put = _identity) -> dict[str, Any]:
  """The parameters of transformers' FlaxLlamaForCausalLM: nested dict as in linen's collection 'params'.

  Args, Raises: as `tunix_qwen2`.
  """
  return _nest(_read(file, _FLAX_LLAMA, shape, put), str)


def penzai_llama(file: GGUFFile, shape: LlamaShape, put: Put = _identity) -> dict[str, Any]:
  """The parameters of penzai's llama-like transformer, by labels without the model's name.

  Args, Raises: as `tunix_qwen2`.
  """
  return _read(file, _PENZAI_LLAMA, shape, put)


def tunix_gemma3(file: GGUFFile, shape: Gemma3Shape, put: Put = _identity) -> dict[str, Any]:
  """The parameters of google-tunix's Gemma3 class: nested dict in the structure of its pure state.

  Args, Raises: as `tunix_qwen2`.
  """
  return _nest(_read(file, _TUNIX_GEMMA3, shape, put), int)


def linen_gemma3(file: GGUFFile, shape: Gemma3Shape, put: Put = _identity) -> dict[str, Any]:
  """The parameters of the gemma package's Transformer, built with `transpose_gating_einsum`: nested dict.

  Args, Raises: as `tunix_qwen2`.
  """
  return _nest(_read(file, _LINEN_GEMMA3, shape, put), str)


def _read(file: GGUFFile, table: Sequence[TensorLine], shape: Sizes, put: Put) -> dict[str, Any]:
  """Reads every parameter of a table, by its path."""
  tensors, params = Tensors(file), {}
  letters = {
    'D': shape.d_model, 'F': shape.d_mlp, 'N': shape.n_heads, 'K': shape.n_kv_heads,
    'G': shape.n_heads // shape.n_kv_heads, 'H': shape.d_head, 'J': shape.d_head // 2,
    'V': shape.n_vocab,
  }  # fmt: skip
  for leaf, found in itertools.groupby(table, key=lambda line: line.leaf):
    parts = [line for line in found if line.name != _UNEMBED or _UNEMBED in file.tensors]
    for i in range(shape.n_layers if '{}' in leaf else 1):
      arrays = [_parameter(tensors, line, i, letters) for line in parts]
      if arrays:
        params[leaf.format(i)] = put(np.stack(arrays) if len(arrays) > 1 else arrays[0])
  tensors.check_all_taken()
  return params


def _parameter(
  tensors: Tensors, line: TensorLine, layer: int, letters: dict[str, int]
) -> np.ndarray:
  whole = whole_shape(line, letters)
  if line.name == _ZEROS:
    return np.zeros(whole, np.float32)
  array = arrange(line, tensors.take(line.name.format(layer), *whole), letters)
  return array + np.float32(line.plus) if line.plus else array


def _nest(params: dict[str, Any], layer: Callable[[str], Any]) -> dict[str, Any]:
  """Makes a tree from dotted paths; `layer` converts numbers to keys."""
  tree: dict[Any, Any] = {}
  for path, array in params.items():
    *above, last = (layer(key) if key.isdigit() else key for key in path.split('.'))
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    node[last] = array
  return tree
