"""Checks of what is passed with a frozen run: numbers, indices of features, targets and graphs of this run.

A run is arrays, and so are targets and graphs, so those of another prompt fit as well and give numbers that mean
nothing. Their values are known, so they are compared with the run before anything is computed. NumPy would also take a
mask of features for the indices 0 and 1, and cut the digits off 1.7: indices have to be whole numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int

from mechjax.errors import CircuitError

if TYPE_CHECKING:
  from mechjax.circuits.frozen import Frozen
  from mechjax.circuits.graph import Graph
  from mechjax.circuits.targets import Targets

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


def check_targets(frozen: Frozen, targets: Targets) -> None:
  """Checks that targets are those of a run: direction times stream, and constant, give their values.

  Raises:
    CircuitError: targets of another run, or traced values.
  """
  check_concrete('the frozen run', frozen.stream)
  check_concrete('the targets', targets)
  stream, vector = np.asarray(frozen.stream), np.asarray(targets.vector)
  levels, T, D = stream.shape
  level, position = np.asarray(targets.level), np.asarray(targets.position)
  if not len(targets):
    return
  fits = vector.shape == (len(targets), D) and level.max() < levels and position.max() < T
  if fits and min(level.min(), position.min()) >= 0:
    x = stream[level, position]
    found = np.einsum('rd,rd->r', vector, x) + targets.constant
    size = np.einsum('rd,rd->r', np.abs(vector), np.abs(x)) + np.abs(targets.constant)
    size += np.abs(targets.value)
    wrong = np.flatnonzero(~(np.abs(found - targets.value) <= SAME * size))
    if not len(wrong):
      return
    i = int(wrong[0])
    names = targets.names or [f'target {n}' for n in range(len(targets))]
    raise CircuitError(
      f'{names[i]!r} is {float(targets.value[i]):.5g} in its own run, and {float(found[i]):.5g} in this one',
      cause='targets of another prompt or of another model',
      hint='make targets from the run that explains them: logits(frozen)',
    )
  raise CircuitError(
    f'targets with directions {list(vector.shape)} up to level {level.max()} and position {position.max()}, '
    f'and a run of {T} positions of width {D} up to level {levels - 1}',
    cause='targets of another prompt or of another model',
  )


def check_graph_of(frozen: Frozen, graph: Graph) -> None:
  """Raises CircuitError unless a graph is one of this run."""
  f = frozen.features
  pairs = [(graph.tokens, frozen.tokens), *((getattr(graph, n), getattr(f, n)) for n in _PLACE)]
  same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
  if same and np.allclose(graph.activation, f.activation, rtol=SAME, atol=0):
    return
  raise CircuitError(
    f'a graph of {graph.columns.n_features} features at {graph.columns.n_positions} positions, '
    f'and a run of {len(f)} features at {len(frozen.tokens)} positions, which are not the same',
    cause='the graph of another run',
    hint='attribute(frozen, ...) of this run',
  )


_PLACE = ('layer', 'position', 'latent')
