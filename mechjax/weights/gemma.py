"""The sizes and constants of a Gemma 3 text model, from the header of a GGUF file.

The header leaves out what llama.cpp knows by heart: five local layers to a global one, and 10000 as the rotary base of
the local ones.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mechjax import errors
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.names import Sizes, epsilon, header, rope_scale, sizes

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
