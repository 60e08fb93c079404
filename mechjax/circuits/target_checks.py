"""Check that targets are those of the run which explains them.

A run is arrays, and so are targets, so those of another prompt fit as well and give numbers that mean nothing. Their
values are known, so they are compared with the run before anything is computed.
"""

from __future__ import annotations

import numpy as np

from mechjax.circuits.checks import SAME, check_concrete
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError


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
