"""Order of activations: the arithmetic of buckets, shards and resuming.

An epoch is a permutation of the contexts. The concatenation of its tokens, without special tokens, gives its
ACTIVATIONS, numbered from 0; the number of activations of a context follows from its tokens alone. So the contexts of
activations 5,000 to 5,999 are found without a forward pass, pieces have exactly the requested size, and the position of
a run is one number.

    order = Order.of(contexts.count_kept(), seed=0, epoch=2)
    order.span(5000, 6000)        -> the contexts, and the number of their activations before 5,000

Letters: N contexts, T tokens per context.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """Order of the contexts of an epoch.

  Attributes:
    contexts: numbers of the contexts, a permutation, int64 [N].
    ends: cumulative number of activations, including each context, int64 [N].
  """

  contexts: np.ndarray
  ends: np.ndarray

  @classmethod
  def of(cls, counts: np.ndarray, seed: int, epoch: int) -> Order:
    """The order of an epoch.

    Args:
      counts: number of activations of each context (`Contexts.count_kept`).
      seed: seed of the permutation, together with the epoch.
      epoch: from 0.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(counts))
    return cls(order, np.cumsum(counts[order]))

  @property
  def total(self) -> int:
    """Number of activations of an epoch."""
    return int(self.ends[-1])

  def span(self, start: int, stop: int) -> tuple[np.ndarray, int]:
    """The contexts of activations `start` up to `stop`, exclusive, and the number of their activations to skip."""
    first, last = np.searchsorted(self.ends, (start, stop - 1), side='right')
    before = int(self.ends[first - 1]) if first else 0
    return self.contexts[first : last + 1], start - before
