"""Which activation stands where: the arithmetic behind buckets, shards and resuming.

An epoch is a permutation of the contexts. Its tokens, without special ones, one after the other are its ACTIVATIONS,
numbered from 0; how many each context has is known from the tokens alone. So the contexts that hold activations 5,000
to 5,999 are found without a forward pass, pieces of any size are exactly of that size, and where a run stands is one
number.

    order = Order.of(contexts.count_kept(), seed=0, epoch=2)
    order.span(5000, 6000)        -> the contexts, and how many of their first activations come before 5,000

Letters: N contexts, T tokens of one.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """Contexts of an epoch.

  Attributes:
    contexts: their numbers, a permutation, int64 [N].
    ends: how many activations there are up to and with each, int64 [N].
  """

  contexts: np.ndarray
  ends: np.ndarray

  @classmethod
  def of(cls, counts: np.ndarray, seed: int, epoch: int) -> Order:
    """The order of an epoch.

    Args:
      counts: how many activations each context has (`Contexts.count_kept`).
      seed: with the epoch it decides the permutation.
      epoch: from 0.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(counts))
    return cls(order, np.cumsum(counts[order]))

  @property
  def total(self) -> int:
    """How many activations an epoch has."""
    return int(self.ends[-1])

  def span(self, start: int, stop: int) -> tuple[np.ndarray, int]:
    """The contexts that hold activations `start` to before `stop`, and how many of theirs to leave out in front."""
    first, last = np.searchsorted(self.ends, (start, stop - 1), side='right')
    before = int(self.ends[first - 1]) if first else 0
    return self.contexts[first : last + 1], start - before
