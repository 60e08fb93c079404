"""Leading axes of a batch of problems: those along which features differ, and those that share them.

Probes of one layer with many labels or penalties share their features, and one product with a wide matrix serves all of
them; probes of many layers do not. So a batch is a table [groups, members]: each group has its own features, and its
members share these. Leading axes broadcast as in NumPy:

    features [18, 1, B, D], labels [B], l2 [9]    18 layers x 9 penalties: 18 groups of 9 members, result [18, 9, ...]

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped

from mechjax.errors import ProbingError

BLOCK_BYTES = 2**22
"""Features of so many bytes are processed together: more would leave the cache of a core."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BatchLayout:
  """The leading axes of a batch, as groups and members.

  Attributes:
    shape: the leading axes of the result.
    own: axes along which features differ.
  """

  shape: Shape
  own: tuple[int, ...]

  @classmethod
  def of(cls, features: Shape, *others: Shape) -> BatchLayout:
    """The layout of features with some leading axes, with labels and penalties with others.

    Raises:
      ProbingError: leading axes that do not broadcast.
    """
    try:
      shape = np.broadcast_shapes(features, *others)
    except ValueError as e:
      raise ProbingError(
        f'the problems have the leading axes {[features, *others]}, which do not broadcast',
        hint='features [18, 1, B, D], labels [B] and l2 [9] are 18 x 9 problems',
      ) from e
    padded = (1,) * (len(shape) - len(features)) + features
    return cls(shape, tuple(i for i, n in enumerate(padded) if n > 1))

  @property
  def shared(self) -> tuple[int, ...]:
    """Axes along which features are the same."""
    return tuple(i for i in range(len(self.shape)) if i not in self.own)

  @property
  def groups(self) -> int:
    """Number of different sets of features."""
    return math.prod(self.shape[i] for i in self.own)

  @property
  def members(self) -> int:
    """Number of problems of each set of features."""
    return math.prod(self.shape[i] for i in self.shared)

  def group(self, features: Shaped[np.ndarray, '*_ B D']) -> Shaped[np.ndarray, 'groups B D']:
    """Features as [groups, B, D]."""
    return features.reshape(self.groups, *features.shape[-2:])

  def spread(
    self, values: Shaped[np.ndarray, '*values'], inner: int
  ) -> Shaped[np.ndarray, 'groups members ...']:
    """Values with `inner` axes of their own as [groups, members, ...]."""
    own = values.shape[values.ndim - inner :]
    full = np.broadcast_to(values, (*self.shape, *own))
    n = len(self.shape)
    moved = full.transpose(*self.own, *self.shared, *range(n, n + inner))
    return moved.reshape(self.groups, self.members, *own)

  def restore(
    self, values: Shaped[np.ndarray, 'groups members ...']
  ) -> Shaped[np.ndarray, '*values']:
    """The inverse of `spread`."""
    order = (*self.own, *self.shared)
    split = values.reshape((*(self.shape[i] for i in order), *values.shape[2:]))
    inner = range(len(order), split.ndim)
    return split.transpose(*np.argsort(order), *inner) if order else split

  def blocks(self, rows: int, columns: int) -> Iterator[slice]:
    """Slices of the groups whose matrices of `rows` x `columns` fit into `BLOCK_BYTES` together; at least one each."""
    size = max(1, BLOCK_BYTES // (8 * rows * columns))
    yield from (slice(low, low + size) for low in range(0, self.groups, size))
