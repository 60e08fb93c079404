"""A model that can generate, as two functions: generation does not depend on the library of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Bool, Float, Int32, PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that can generate.

  Attributes:
    step: pure function (params, tokens int [B, T], mask bool [B, T], cache) -> (logits [B, T, V], cache); a token
      whose mask is False is padding, which has no influence on other positions. The cache holds keys and values as they
      were before any intervention at 'k' and 'v': a planted function sees them so at every step, and what it returns
      is used in that step and not kept.
    new_cache: (params, number of rows, number of slots) -> an empty cache, whose dtype is that of the computation with
      these params. None for a model without a cache: every step is then a pass over the whole text, with None in place
      of the cache, and rows are padded on the right, where a causal model needs no mask.
    max_length: number of learned positions, beyond which there are no logits; None without learned positions.
    columns: maximum number of columns of prompts that a step computes at once, a power of two; None for whole prompts,
      because `step` cannot append several columns to a cache in use. All columns at once have memory for their scores
      and logits, which is 20 GB for 16 prompts of 2,000 tokens and a vocabulary of 150,000.
  """

  step: Callable[
    [PyTree, Int32[Array, 'B T'], Bool[Array, 'B T'], PyTree], tuple[Float[Array, 'B T V'], PyTree]
  ]
  new_cache: Callable[[PyTree, int, int], PyTree] | None
  max_length: int | None = None
  columns: int | None = None

  def empty_cache(self, params: PyTree, rows: int, slots: int) -> PyTree:
    """An empty cache, or None for a model without one."""
    return None if self.new_cache is None else self.new_cache(params, rows, slots)
