"""Prediction by the mean of the token: numbers of each token id in blocks of contexts, each predicted from the others.

The simplest predictor of a number is the mean over all other occurrences of the same token, and a regression that does
not beat it has found the identity of the token. An id that occurs in one block alone is predicted by the mean of all
tokens of the other blocks.

    means = TokenMeans(n_blocks=10)
    for block, ids, y in ...: means.add(block, ids, y)             [n] and [n, E]
    residual, total = means.cross_validate()                       as `NormalEquations`

Sharp edge: the sums take 8 K (E + 1) bytes for each id up to the largest.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from mechjax.sae.analysis.normal_equations import SquareSums


class TokenMeans:
  """Sums of targets by token id and block.

  Attributes:
    n_blocks: K, number of blocks.
  """

  def __init__(self, n_blocks: int):
    self.n_blocks = n_blocks
    self._sums = np.zeros((n_blocks, 0, 1))  # the first column counts
    self._squares = np.zeros((n_blocks, 0))

  def add(self, block: int, ids: Int[np.ndarray, ' n'], y: Float64[np.ndarray, 'n E']) -> None:
    """Adds tokens to one block."""
    if not len(ids):
      return
    self._grow(int(ids.max()) + 1, y.shape[1])
    np.add.at(self._sums[block], ids, np.column_stack([np.ones(len(y)), y]))
    self._squares[block] += np.einsum('ne,ne->e', y, y)

  def _grow(self, n_ids: int, width: int) -> None:
    K, V, columns = self._sums.shape
    if not V:
      columns, self._squares = width + 1, np.zeros((K, width))
    if n_ids > V:
      longer = np.zeros((K, max(n_ids, 2 * V), columns))
      if V:
        longer[:, :V] = self._sums
      self._sums = longer

  def cross_validate(self) -> SquareSums:
    """Squared errors on each block, predicted from all others; every block has tokens."""
    parts = [self._measure(block) for block in range(self.n_blocks)]
    return SquareSums(*(np.stack(values) for values in zip(*parts)))

  def _measure(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    own, other = self._sums[block], np.delete(self._sums, block, 0).sum(0)
    total = other.sum(0)
    overall = total[1:] / total[0]
    means = np.where(other[:, :1] > 0, other[:, 1:] / np.maximum(other[:, :1], 1), overall)
    return self._about(block, own, means), self._about(block, own, overall)

  def _about(self, block: int, own: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Sum of (y - mean)^2 over the tokens of a block."""
    return (self._squares[block] + (means * (own[:, :1] * means - 2 * own[:, 1:])).sum(0)).clip(0)
