"""The sizes and constants of a Gemma 3 text model, from the header of a GGUF file.

The header omits two constants that llama.cpp hard-codes: five local layers for each global layer, and 10000 as the
rotary base of local layers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mechjax import errors
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.names import Sizes, epsilon, header, rope_scale, sizes

# The last of every 6 layers is global.
PERIOD = 6


@dataclasses.dataclass(frozen=True)
class Gemma3Shape(Sizes):
  """The sizes and constants of a Gemma 3 text model.

  Attributes:
    window: number of positions that a local layer sees, the token's own included.
    local_rope_base: base of the rotary frequencies in local layers.
    global_rope_base: the same in global layers.
    global_rope_scale: divisor of the positions in global layers.
  """

  window: int
  local_rope_base: float
  global_rope_base: float
  global_rope_scale: float


def gemma3_shape(file: GGUFFile) -> Gemma3Shape:
  """Reads the sizes in a gemma3-architecture GGUF header.

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
    raise errors.WeightsError(f'{file.path} has epsilon {eps} in its norms; the classes use 1e-6')
  if shape.n_heads == shape.n_kv_heads or shape.n_layers == 62:
    raise errors.WeightsError(
      f'{file.path} has {shape.n_layers} layers, {shape.n_heads} heads and {shape.n_kv_heads} '
      'key-value heads',
      cause='the 27B model scales its queries differently, and ungrouped heads are stored in another '
      'layout; this name map supports neither',
    )
  return shape
