"""Checks of numbers and of indices of features.

NumPy would take a mask of features for the indices 0 and 1, and cut the digits off 1.7: indices have to be whole
numbers. Targets and graphs are checked by `target_checks` and `graph.check_graph_of`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mechjax.errors import CircuitError

SAME = 1e-3
"""Largest difference of a value from that of the run, relative to the sum of magnitudes of which it consists."""


def check_whole(name: str, value: Any) -> int:
  """Returns a whole number of any type.

  Raises:
    CircuitError: something else, such as 1.5, True or a text.
  """
  try:
    if isinstance(value, bool | np.bool_):
      raise TypeError
    return operator.index(value)
  except TypeError as e:
    hint = "model.token(' Paris') is the id of a token" if isinstance(value, str) else None
    raise CircuitError(f'{name}={value!r:.100} should be a whole number', hint=hint) from e


def check_index(index: Sequence[int] | np.ndarray, count: int) -> Int[np.ndarray, ' _']:
  """Indices of features as an array.

  Raises:
    CircuitError: not whole numbers, or a feature that does not exist.
  """
  found = np.asarray(index).reshape(-1)
  if found.size and found.dtype.kind not in 'iu':
    raise CircuitError(
      f'indices of features of type {found.dtype}: {index!r:.100}',
      cause='a mask' if found.dtype == bool else None,
      hint='whole numbers; np.flatnonzero(frozen.features.layer == 3) for those of layer 3',
    )
  wrong = found[(found < 0) | (found >= count)]
  if wrong.size:
    raise CircuitError(f'feature {wrong[0]} of {count} active features')
  return found.astype(np.int64)


def check_concrete(what: str, tree: Any) -> None:
  """Raises CircuitError for traced values, whose numbers cannot be checked."""
  if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree)):
    raise CircuitError(
      f'{what} is traced, and its values are checked',
      hint='call this function outside of jit, grad and vmap; it compiles what it computes',
    )
