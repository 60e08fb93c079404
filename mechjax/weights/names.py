"""The sizes of a model in the header of a GGUF file, and access to its tensors with a check of each shape.

`upstream` and `llama_cpp` map the tensors to parameters.
"""

from __future__ import annotations

import dataclasses

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
    tied: whether the unembedding is the embedding.
  """

  rope_base: float
  norm_eps: float
  tied: bool


def sizes(file: GGUFFile, architecture: str) -> dict[str, int]:
  """Reads the sizes in a GGUF header.

  Args:
    file: an open file.
    architecture: the only architecture that the map supports.

  Returns:
    The fields of `Sizes`, by name.

  Raises:
    WeightsError: another architecture; a size that is missing, not an integer, or larger than the file allows.
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
    s.check_supported(key, d_head)
  if (n_vocab := s.integer('vocab_size', len(tokens))) != len(tokens):
    raise errors.WeightsError(
      f'{s.where} has vocab_size={n_vocab}, but the header lists {len(tokens)} tokens'
    )
  return {
    # A model has a tensor for each layer, so the file bounds the effect of a damaged number.
    'n_layers': s.integer('block_count', maximum=len(file.tensors)),
    'd_model': d_model,
    'd_mlp': s.integer('feed_forward_length'),
    'n_heads': n_heads,
    'n_kv_heads': s.integer('attention.head_count_kv', n_heads),
    'd_head': d_head,
    'n_vocab': len(tokens),
  }


def header(file: GGUFFile, architecture: str) -> Values:
  """The settings of an architecture in a GGUF header, by their names without the architecture."""
  prefix = f'{architecture}.'
  own = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
  return Values(own, f'{file.path}, metadata {prefix}*')


def epsilon(settings: Values) -> float:
  """The epsilon of the norms: the shortest decimal of the float32 in the file."""
  return float(str(np.float32(settings.number('attention.layer_norm_rms_epsilon', zero=True))))


def rope_scale(settings: Values) -> float:
  """The divisor of positions. A factor without a type is linear, and 'none' ignores the factor, as in llama.cpp.

  Raises:
    WeightsError: the scaling is not linear.
  """
  settings.check_supported('rope.scale_linear', 1.0, 0.0)  # the name of the factor in files of 2023
  kind = settings.string('rope.scaling.type', 'linear')
  if kind not in ('none', 'linear'):
    raise errors.WeightsError(
      f'{settings.where} has a scaling of rotary positions ({kind!r:.100}) that this name map does not support'
    )
  factor = settings.number('rope.scaling.factor', 1.0, zero=True)
  return factor if kind == 'linear' and factor else 1.0


def llama_shape(file: GGUFFile, architecture: str = 'llama') -> LlamaShape:
  """Reads the sizes in the GGUF header of a llama, or of an architecture with the same settings.

  Args:
    file: an open file.
    architecture: 'llama' or 'qwen2'.

  Returns:
    The sizes.

  Raises:
    WeightsError: another architecture, a setting of another type or out of range, or a rotary scheme that a plain
      llama does not have.
  """
  plain = sizes(file, architecture)
  s = header(file, architecture)
  if (scale := rope_scale(s)) != 1:
    raise errors.WeightsError(
      f'{file.path} has a scaling of rotary positions (by {scale:g}) that this name map does not support'
    )
  s.check_supported('expert_count', 0)
  return LlamaShape(
    **plain,
    rope_base=s.number('rope.freq_base', 10_000.0),
    norm_eps=epsilon(s),
    tied='output.weight' not in file.tensors,
  )


class Tensors:
  """Reads the tensors of a file, checks their shapes, and records which were taken."""

  def __init__(self, file: GGUFFile):
    """Starts with no tensor taken."""
    self.file, self.taken = file, set[str]()

  def take(self, name: str, *shape: int) -> np.ndarray:
    """Reads a tensor as float32; a WeightsError if it is missing or has another shape."""
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
        cause='a variant of the architecture; a model without them would compute something else',
      )
