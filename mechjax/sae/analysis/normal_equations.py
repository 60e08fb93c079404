"""Least squares over any number of tokens: sums of products in float64 on the host, and a fit for every block left out.

A regression of E targets on D inputs and a constant needs no data but the sums over tokens of z z^T and z y^T, with
z = [x - c; 1]: 2.7 MB for D = 576, however many tokens there are. The sums are kept for K blocks of contexts. Without
one block they give the coefficients of all other tokens, and with these its own sums give the squared error on tokens
that the fit has not seen:

    equations = NormalEquations(n_blocks=10)
    for block, x, y in ...: equations.add(block, x, y)                   [n, D] and [n, E]
    equations.solve()                                                    Linear(weights [D, E], bias [E])
    residual, total = equations.cross_validate()                         [K, E] each, sums of squares

Why float64. The products square the condition of the data: the directions of a residual stream differ by a factor of
10^3 in scale, so 10^6 in the sums, and float32 has seven digits. c is the mean of the first tokens; without it a mean
far from zero costs digits too. `solve` scales inputs to unit variance and leaves out directions without variance.

Sharp edges: products of float64 run on the host. At D = 2,304 and E = D they cost 21 MFLOP a token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # imports scipy.linalg where it is first used
from jaxtyping import Float, Float64

from mechjax.errors import SAEError


class Linear(NamedTuple):
  """y = x @ weights + bias.

  Attributes:
    weights: [D, E].
    bias: [E].
  """

  weights: Float64[np.ndarray, 'D E']
  bias: Float64[np.ndarray, ' E']


class SquareSums(NamedTuple):
  """Sums of squares on the tokens of each block.

  Attributes:
    residual: of the targets minus the prediction of a fit to all other blocks, [K, E].
    total: of the targets minus the mean of all other blocks, [K, E].
  """

  residual: Float64[np.ndarray, 'K E']
  total: Float64[np.ndarray, 'K E']


class NormalEquations:
  """Sums of products of inputs and targets for each block.

  Attributes:
    n_blocks: K, number of blocks.
    counts: number of tokens of each block, int64 [K].
  """

  def __init__(self, n_blocks: int):
    self.n_blocks = n_blocks
    self.counts = np.zeros(n_blocks, np.int64)
    self._centre: tuple[np.ndarray, np.ndarray] | None = None

  def add(self, block: int, x: Float[np.ndarray, 'n D'], y: Float[np.ndarray, 'n E']) -> None:
    """Adds tokens to one block; inputs may have a width of 0, for `scatter` alone.

    Raises:
      SAEError: another width than that of the tokens before.
    """
    if not len(x):
      return
    x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    if self._centre is None:
      self._start(x, y)
    assert self._centre is not None
    if (x.shape[1], y.shape[1]) != tuple(map(len, self._centre)):
      raise SAEError(
        f'tokens of widths {x.shape[1]} and {y.shape[1]} after some of widths {[*map(len, self._centre)]}'
      )
    z = np.empty((len(x), x.shape[1] + 1))
    np.subtract(x, self._centre[0], out=z[:, :-1])
    z[:, -1] = 1
    y = y - self._centre[1]
    _add_square(self._gram[block], z)
    _add_product(self._cross[block], z, y)
    self._squares[block] += np.einsum('ne,ne->e', y, y)
    self.counts[block] += len(x)

  def _start(self, x: Float64[np.ndarray, 'n D'], y: Float64[np.ndarray, 'n E']) -> None:
    self._centre = x.mean(0), y.mean(0)
    K, D, E = self.n_blocks, x.shape[1] + 1, y.shape[1]
    self._gram, self._cross = np.zeros((K, D, D)), np.zeros((K, D, E))
    self._squares = np.zeros((K, E))

  def check(self) -> None:
    """Checks that every fit is determined.

    Raises:
      SAEError: no tokens, a block without tokens, or fewer tokens than coefficients without the largest block.
    """
    if self._centre is None:
      raise SAEError('no tokens', cause='no batches, or masks that keep nothing')
    if not self.counts.all():
      raise SAEError(
        f'{(self.counts > 0).sum()} of {self.n_blocks} blocks have tokens',
        cause='fewer contexts than blocks; each row of a batch is a context',
        hint='more contexts, or n_blocks=',
      )
    fewest, needed = self.counts.sum() - self.counts.max(), len(self._centre[0]) + 1
    if fewest <= needed:
      raise SAEError(
        f'{fewest} tokens for {needed} coefficients of each target',
        cause='a fit to so few tokens is exact on them, whatever they are',
        hint='ten times as many tokens as coefficients, or more',
      )

  def solve(self, without: int | None = None) -> Linear:
    """Coefficients of the least-squares fit, to all blocks or to all but one.

    Of several fits with equal errors, that with the shortest weights for inputs of unit variance.
    """
    assert self._centre is not None
    coefficients = self._solve(without)
    weights = coefficients[:-1]
    return Linear(weights, self._centre[1] + coefficients[-1] - self._centre[0] @ weights)

  def cross_validate(self) -> SquareSums:
    """Squared errors on each block of the fit to all others.

    Raises:
      SAEError: as `check`.
    """
    self.check()
    parts = [self._measure(block) for block in range(self.n_blocks)]
    return SquareSums(*(np.stack(values) for values in zip(*parts)))

  def scatter(self) -> Float64[np.ndarray, 'K E']:
    """Sums of squares of the targets about the mean of all tokens, for each block."""
    mean = self._cross[:, -1].sum(0) / self.counts.sum()
    return self._about(mean)

  def _about(self, mean: Float64[np.ndarray, ' E']) -> Float64[np.ndarray, 'K E']:
    sums = self._cross[:, -1]
    return (self._squares - 2 * mean * sums + self.counts[:, None] * mean**2).clip(0)

  def _measure(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    B = self._solve(block)
    gram, cross = _symmetrise(self._gram[block]), self._cross[block]
    explained = 2 * np.einsum('de,de->e', B, cross) - np.einsum('de,de->e', B, gram @ B)
    mean = self._without(self._cross[:, -1], block) / (self.counts.sum() - self.counts[block])
    return (self._squares[block] - explained).clip(0), self._about(mean)[block]

  def _solve(self, without: int | None) -> Float64[np.ndarray, 'D1 E']:
    """Coefficients for inputs [x - c; 1] and targets y - c."""
    gram = _symmetrise(self._without(self._gram, without))
    cross = self._without(self._cross, without)
    n = gram[-1, -1]
    mean_x, mean_y = gram[-1, :-1] / n, cross[-1] / n
    covariance = gram[:-1, :-1] - n * np.outer(mean_x, mean_x)
    scale = np.sqrt(np.diagonal(covariance).clip(0))
    constant = scale**2 <= 1e-12 * np.diagonal(gram)[:-1]  # no variance but rounding
    scale = np.where(constant, np.inf, scale)
    values, vectors = np.linalg.eigh(covariance / scale[:, None] / scale)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps * 10
    projected = vectors[:, kept].T @ ((cross[:-1] - n * np.outer(mean_x, mean_y)) / scale[:, None])
    weights = vectors[:, kept] @ (projected / values[kept, None]) / scale[:, None]
    return np.vstack([weights, mean_y - mean_x @ weights])

  def _without(self, sums: np.ndarray, block: int | None) -> np.ndarray:
    return sums.sum(0) if block is None else np.delete(sums, block, 0).sum(0)


def _add_square(total: np.ndarray, z: np.ndarray) -> None:
  """Adds z^T z to the lower triangle of `total`, in place: half the operations, and no array in between."""
  found = scipy.linalg.blas.dsyrk(1.0, z.T, beta=1.0, c=total.T, overwrite_c=1)
  assert np.may_share_memory(found, total)


def _add_product(total: np.ndarray, z: np.ndarray, y: np.ndarray) -> None:
  """Adds z^T y to `total` in place."""
  found = scipy.linalg.blas.dgemm(1.0, y.T, z.T, beta=1.0, c=total.T, trans_b=1, overwrite_c=1)
  assert np.may_share_memory(found, total)


def _symmetrise(lower: np.ndarray) -> np.ndarray:
  """The symmetric matrix with this lower triangle."""
  return np.tril(lower) + np.tril(lower, -1).T
