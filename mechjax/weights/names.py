"""What each code base calls each tensor, and in which layout it wants it.

The same weights have other names, other axes and even another order of rows in every
implementation, and a mistake in any of them yields a model that still speaks, only worse. So each
map is written out as the tree that the implementation expects, one line per parameter, every shape
stated and compared, and it must use every tensor of the file: a bias or a table of rotary
frequencies that the map does not know is an error, never silently left out.

The trap worth knowing: llama-family GGUF files interleave the two halves of each rotary pair in
the rows of attn_q and attn_k. Implementations that rotate halves (all the JAX ones) need
`unpermute`.

Shapes: D model, F mlp, N query heads, K key-value heads, H per head, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mechjax import errors
from mechjax.weights import vocabulary
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.values import Values


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes that every decoder has.

  Attributes:
    n_layers: number of blocks.
    d_model: width of the residual stream.
    d_mlp: number of neurons of a block.
    n_heads: query heads.
    n_kv_heads: key-value heads.
    d_head: width of a head.
    n_vocab: number of tokens.
  """

  n_layers: int
  d_model: int
  d_mlp: int
  n_heads: int
  n_kv_heads: int
  d_head: int
  n_vocab: int


@dataclasses.dataclass(frozen=True)
class LlamaShape(Sizes):
  """The sizes and constants of a llama-family model.

  Attributes:
    rope_base: base of the rotary frequencies.
    norm_eps: added to the mean square in the norms.
    tied: the embedding is the unembedding too.
  """

  rope_base: float
  norm_eps: float
  tied: bool


def sizes(file: GGUFFile, architecture: str) -> dict[str, int]:
  """Reads the sizes out of a GGUF header.

  Args:
    file: an open file.
    architecture: the only one that the map reads.

  Returns:
    The fields of `Sizes`, by name.

  Raises:
    WeightsError: another architecture; a size that is missing, no integer, or larger than the file allows.
  """
  found = file.value('general.architecture')
  if found != architecture:
    raise errors.WeightsError(
      f'{file.path} has architecture {found!r:.100}; this name map reads {architecture!r}'
    )
  s = header(file, architecture)
  n_heads, d_model = s.integer('attention.head_count'), s.integer('embedding_length')
  d_head = s.integer('attention.key_length', d_model // n_heads)
  tokens = vocabulary.tokens(file.metadata, f'{file.path}')
  for key in ('attention.value_length', 'rope.dimension_count'):
    s.insist(key, d_head)
  if (n_vocab := s.integer('vocab_size', len(tokens))) != len(tokens):
    raise errors.WeightsError(
      f'{s.where} has vocab_size={n_vocab}, and the header lists {len(tokens)} tokens'
    )
  return {
    # A model has a tensor for each layer, so the file bounds what a damaged number can ask for.
    'n_layers': s.integer('block_count', most=len(file.tensors)),
    'd_model': d_model,
    'd_mlp': s.integer('feed_forward_length'),
    'n_heads': n_heads,
    'n_kv_heads': s.integer('attention.head_count_kv', n_heads),
    'd_head': d_head,
    'n_vocab': len(tokens),
  }


def header(file: GGUFFile, architecture: str) -> Values:
  """The settings of a GGUF header that are the architecture's own, by their names without it."""
  prefix = f'{architecture}.'
  own = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
  return Values(own, f'{file.path}, metadata {prefix}*')


def epsilon(settings: Values) -> float:
  """What a norm adds to the mean square: stored as float32, and meant as the shortest decimal."""
  return float(str(np.float32(settings.number('attention.layer_norm_rms_epsilon', zero=True))))


def rope_scale(settings: Values) -> float:
  """What positions are divided by. A factor without a type is linear, and 'none' ignores the factor, as in llama.cpp.

  Raises:
    WeightsError: another scaling than a linear one.
  """
  settings.insist('rope.scale_linear', 1.0, 0.0)  # what files of 2023 have instead
  kind = settings.word('rope.scaling.type', 'linear')
  if kind not in ('none', 'linear'):
    raise errors.WeightsError(
      f'{settings.where}: scales its rotary positions ({kind!r:.100}), which this name map cannot express'
    )
  factor = settings.number('rope.scaling.factor', 1.0, zero=True)
  return factor if kind == 'linear' and factor else 1.0


def llama_shape(file: GGUFFile) -> LlamaShape:
  """Reads the sizes out of a llama-architecture GGUF header.

  Args:
    file: an open file.

  Returns:
    The sizes.

  Raises:
    WeightsError: another architecture, a setting of another type or out of range, or a rotary scheme that a plain
      llama does not have.
  """
  plain = sizes(file, 'llama')
  s = header(file, 'llama')
  if (scale := rope_scale(s)) != 1:
    raise errors.WeightsError(
      f'{file.path} scales its rotary positions (by {scale:g}), which this name map cannot express'
    )
  s.insist('expert_count', 0)
  return LlamaShape(
    **plain,
    rope_base=s.number('rope.freq_base', 10_000.0),
    norm_eps=epsilon(s),
    tied='output.weight' not in file.tensors,
  )


def unpermute(w: np.ndarray, n_heads: int) -> np.ndarray:
  """Undoes GGUF's interleaving of rotary pairs.

  Args:
    w: [n_heads * H, D], row 2j + s of a head being row j + s * H/2 of the original.
    n_heads: how many heads the rows hold.

  Returns:
    The rows in the order in which the two halves of a head are rotated against each other.
  """
  return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def tunix_qwen2(
  file: GGUFFile, shape: LlamaShape, put: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
  """The parameters of google-tunix's Qwen2 class, from a llama-architecture file.

  A llama is a Qwen2 whose query, key and value biases are zero.

  Args:
    file: an open file.
    shape: its sizes, from `llama_shape`.
    put: applied to each part of the tree as soon as it is read, such as `jax.device_put`, so that
      the
      host never holds the whole model beside the device.

  Returns:
    Nested dict of float32 arrays in the structure of the class's pure state.

  Raises:
    WeightsError: a tensor is missing, has another shape, or is one that the map does not know.
  """
  D, V = shape.d_model, shape.n_vocab
  tensors = Tensors(file)
  params: dict[str, Any] = {
    'embedder': put({'input_embedding': tensors.take('token_embd.weight', V, D)}),
    'layers': {i: put(_tunix_layer(tensors, f'blk.{i}', shape)) for i in range(shape.n_layers)},
    'final_norm': put({'w': tensors.take('output_norm.weight', D)}),
  }
  if not shape.tied:
    params['lm_head'] = put({'w': tensors.take('output.weight', V, D).T})
  tensors.check_all_taken()
  return params


def _tunix_layer(tensors: Tensors, blk: str, shape: LlamaShape) -> dict[str, Any]:
  D, N, K, H = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head
  take = tensors.take
  query, key, value = qkv(tensors, blk, shape)
  return {
    'input_layernorm': {'w': take(f'{blk}.attn_norm.weight', D)},
    'attn': {
      'q_proj': {'w': _to_heads(query, N)},
      'k_proj': {'w': _to_heads(key, K)},
      'v_proj': {'w': _to_heads(value, K)},
      'o_proj': {'w': take(f'{blk}.attn_output.weight', D, N * H).T.reshape(N, H, D)},
      'q_bias': np.zeros(N * H, np.float32),
      'k_bias': np.zeros(K * H, np.float32),
      'v_bias': np.zeros(K * H, np.float32),
    },
    'post_attention_layernorm': {'w': take(f'{blk}.ffn_norm.weight', D)},
    'mlp': mlp_kernels(*mlp(tensors, blk, shape)),
  }


def qkv(tensors: Tensors, blk: str, shape: LlamaShape) -> tuple[np.ndarray, ...]:
  """A llama's query, key and value weights, [heads * H, D], rotary halves apart."""
  D, N, K, H = shape.d_model, shape.n_heads, shape.n_kv_heads, shape.d_head
  return (
    unpermute(tensors.take(f'{blk}.attn_q.weight', N * H, D), N),
    unpermute(tensors.take(f'{blk}.attn_k.weight', K * H, D), K),
    tensors.take(f'{blk}.attn_v.weight', K * H, D),
  )


def mlp(tensors: Tensors, blk: str, shape: Sizes) -> tuple[np.ndarray, ...]:
  """Gate [F, D], up [F, D] and down [D, F] of a block."""
  D, F = shape.d_model, shape.d_mlp
  return (
    tensors.take(f'{blk}.ffn_gate.weight', F, D),
    tensors.take(f'{blk}.ffn_up.weight', F, D),
    tensors.take(f'{blk}.ffn_down.weight', D, F),
  )


def mlp_kernels(gate_FxD: np.ndarray, up_FxD: np.ndarray, down_DxF: np.ndarray) -> dict[str, Any]:
  """The MLP of a block as google-tunix's and transformers' classes have it."""
  return {
    'gate_proj': {'kernel': gate_FxD.T},
    'up_proj': {'kernel': up_FxD.T},
    'down_proj': {'kernel': down_DxF.T},
  }


def _to_heads(w: np.ndarray, n_heads: int) -> np.ndarray:
  """[heads * H, D], applied to a column, as [D, heads, H], contracted with a row."""
  return w.T.reshape(w.shape[1], n_heads, -1)


class Tensors:
  """Hands out the tensors of a file, checks their shapes, and remembers which were taken."""

  def __init__(self, file: GGUFFile):
    """Starts with none taken."""
    self.file, self.taken = file, set[str]()

  def take(self, name: str, *shape: int) -> np.ndarray:
    """A tensor in float32; a WeightsError unless it is there and has this shape."""
    info = self.file.tensors.get(name)
    if info is not None and info.shape != shape:
      raise errors.WeightsError(
        f'{self.file.path}: tensor {name!r} has shape {info.shape}, expected {shape}',
        where=f'offset {info.offset}',
        cause='the sizes in the header belong to another model',
      )
    self.taken.add(name)
    return self.file.read(name).astype(np.float32, copy=False)

  def check_all_taken(self) -> None:
    """Raises a WeightsError if the file has a tensor that was not taken."""
    if left := [name for name in self.file.tensors if name not in self.taken]:
      raise errors.WeightsError(
        f'{self.file.path} has {len(left)} tensors that this name map does not use: {left[:8]}',
        cause='a variant of the architecture; leaving them out would compute something else',
      )
