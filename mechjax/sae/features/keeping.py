"""Best examples so far, on the host, and the merge with the candidates of a batch.

Keys are ranked first; windows are fetched and copied only where a new example enters, which is rare after the first
batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mechjax.sae.features.record import Examples
from mechjax.sae.features.selection import Candidates

Rank = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(keys, values) of kept examples and candidates [L, m] -> indices of the n that stay, and their keys, 0 if empty."""

Fetch = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(rows of latents, sequences, positions), each [C] -> tokens and activations of windows, [C, W]."""


class Offer(NamedTuple):
  """Examples without their windows, each [L, n]; key 0 in empty places."""

  key: np.ndarray
  value: np.ndarray
  sequence: np.ndarray
  position: np.ndarray


def offer(candidates: Candidates, first: int, length: int) -> Offer:
  """Converts places in a batch to sequences and positions of the whole data.

  Args:
    candidates: from `selection.select`.
    first: number of the batch's first sequence.
    length: tokens of a sequence, T.
  """
  key, value, place = map(np.asarray, candidates)
  return Offer(key, value, first + place.astype(np.int64) // length, place % length)


def rank_by_key(n: int) -> Rank:
  """Rank by the n largest keys, the earlier of equals first."""

  def rank(key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-key, -1, kind='stable')[:, :n]
    return order, np.take_along_axis(key, order, -1)

  return rank


class Best:
  """Best n examples of each of L latents."""

  def __init__(self, n_latents: int, n: int, width: int) -> None:
    """Starts empty, with windows of `width` tokens."""
    shape = n_latents, n
    self.kept = Offer(
      key=np.zeros(shape, np.float32),
      value=np.zeros(shape, np.float32),
      sequence=np.full(shape, -1, np.int64),
      position=np.full(shape, -1, np.int32),
    )
    self.tokens = np.full((*shape, width), -1, np.int32)
    self.activations = np.zeros((*shape, width), np.float32)

  def merge(self, new: Offer, rank: Rank, fetch: Fetch) -> None:
    """Keeps the best of the old examples and the new candidates."""
    n = self.tokens.shape[1]
    both = [np.concatenate(pair, -1) for pair in zip(self.kept, new)]
    order, key = rank(both[0], both[1])
    entering = (order >= n) & (key > 0)
    rows = np.flatnonzero(entering.any(-1))
    order, key, entering = order[rows], key[rows], entering[rows]
    value, sequence, position = (np.take_along_axis(array[rows], order, -1) for array in both[1:])
    stay = np.minimum(order, n - 1)[..., None]
    tokens = np.take_along_axis(self.tokens[rows], stay, 1)
    activations = np.take_along_axis(self.activations[rows], stay, 1)
    if rows.size:
      at = rows[np.nonzero(entering)[0]], sequence[entering], position[entering]
      tokens[entering], activations[entering] = fetch(*at)
    empty = key == 0
    fills = (key, 0), (value, 0), (sequence, -1), (position, -1), (tokens, -1), (activations, 0)
    for array, filling in fills:
      array[empty] = filling
    for mine, theirs in zip(
      (*self.kept, self.tokens, self.activations), (array for array, _ in fills)
    ):
      mine[rows] = theirs

  def to_examples(self, own: int, order: np.ndarray | None = None) -> Examples:
    """Converts the kept examples.

    Args:
      own: index of the example's own token in its window.
      order: another order of each latent's examples, [L, n].
    """
    arrays = self.kept.sequence, self.kept.position, self.tokens, self.activations
    if order is not None:
      arrays = tuple(array[np.arange(len(order))[:, None], order] for array in arrays)
    return Examples(*arrays, own)
