"""Privileged basis: whether directions align with single neurons.

A fact may be written by a few neurons of its own, or by a direction spread over thousands. In the first case a
direction has few large coordinates in the basis of neurons, and the kurtosis of its coordinates is large; a direction
without a preferred basis looks like a Gaussian vector, whose excess kurtosis is 0.

    found = measure_alignment(directions)          [n, F]: probes, decoder rows, differences of class means
    found.kurtosis, found.top_1, found.next_9      of each vector
    found.rotated_kurtosis                         of the same vectors in randomly rotated bases: the control

Kurtosis is that of the F coordinates of a vector. The shares of squared length in the largest coordinate and in the
next nine are those that describe dictionaries in replications of Bricken et al. 2023. A random rotation of F axes is
applied to all vectors at once and keeps their products; for n vectors a random frame of min(n, F) vectors does the same
as a rotation of all F.

Sharp edges: the vectors must be written in the basis that is asked about: a direction d of the stream in neurons is
W_out d, and the kurtosis of d itself is about channels of the stream. Trained weights have outlier channels, which make
every direction through them look aligned: compare with weights times random directions as well.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used
from jax.typing import ArrayLike
from jaxtyping import Float, Float64

from mechjax.errors import FactsError
from mechjax.facts.bootstrap import error_of_mean
from mechjax.facts.finite import as_table, check_count
from mechjax.host_arrays import check_seed

NEXT = 9
"""Number of coordinates after the largest whose share is measured."""


@dataclasses.dataclass(frozen=True, eq=False)
class BasisAlignment:
  """Alignment of vectors with the axes of their basis, and of the same vectors after random rotations.

  Attributes:
    kurtosis: excess kurtosis of the coordinates of each vector, [n].
    top_1: share of squared length in the largest coordinate, [n].
    next_9: share in the nine after it, [n].
    rotated_kurtosis, rotated_top_1, rotated_next_9: the same after rotations, [rotations, n].
  """

  kurtosis: Float64[np.ndarray, ' n']
  top_1: Float64[np.ndarray, ' n']
  next_9: Float64[np.ndarray, ' n']
  rotated_kurtosis: Float64[np.ndarray, 'rotations n']
  rotated_top_1: Float64[np.ndarray, 'rotations n']
  rotated_next_9: Float64[np.ndarray, 'rotations n']

  @property
  def mean(self) -> tuple[float, float]:
    """Mean kurtosis over the vectors, and its standard error if they are independent."""
    return float(self.kurtosis.mean()), float(error_of_mean(self.kurtosis))

  @property
  def rotated_mean(self) -> tuple[float, float]:
    """Mean over rotations of the mean kurtosis, and the standard deviation of that mean between rotations."""
    each = self.rotated_kurtosis.mean(1)
    return float(each.mean()), float(each.std(ddof=1))


def measure_alignment(
  vectors: Float[ArrayLike, 'n F'], rotations: int = 20, seed: int = 0
) -> BasisAlignment:
  """Alignment of vectors with the axes of their basis.

  Args:
    vectors: in the basis of neurons.
    rotations: number of random rotations.
    seed: seed of the rotations.

  Raises:
    FactsError: fewer than eleven neurons, NaN, or a vector whose coordinates are all equal.
  """
  check_count('rotations', rotations, 2)
  table = as_table('vectors', vectors, 'n F')
  if table.shape[1] <= NEXT + 1:
    raise FactsError(
      f'vectors of {table.shape[1]} coordinates: more than {NEXT + 1} are needed for the shares'
    )
  flat = np.flatnonzero(np.ptp(table, axis=1) == 0)
  if len(flat):
    raise FactsError(
      f'all coordinates of vector {flat[0]} are {table[flat[0], 0]:.3g}, so that it has no kurtosis',
      cause='a class or a latent that never occurs' if not table[flat[0], 0] else None,
    )
  random = np.random.default_rng(check_seed(seed, FactsError))
  own = _measure(table)
  rotated = np.array([_measure(rotate_randomly(table, random)) for _ in range(rotations)])
  return BasisAlignment(*own, *rotated.transpose(1, 0, 2))


def _measure(vectors: np.ndarray) -> np.ndarray:
  """Kurtosis, share of the largest coordinate and share of the next nine, [3, n]."""
  squared = np.sort(vectors**2, axis=1)[:, ::-1] / (vectors**2).sum(1, keepdims=True)
  kurtosis = scipy.stats.kurtosis(vectors, axis=1)
  return np.stack([kurtosis, squared[:, 0], squared[:, 1 : NEXT + 1].sum(1)])


def rotate_randomly(
  vectors: Float64[np.ndarray, 'n F'], random: np.random.Generator
) -> Float64[np.ndarray, 'n F']:
  """The vectors in a basis that is drawn uniformly over all rotations; their products with each other stay the same."""
  Q, R = np.linalg.qr(vectors.T)
  frame, upper = np.linalg.qr(random.standard_normal(Q.shape))
  frame *= np.where(
    np.diag(upper) < 0, -1.0, 1.0
  )  # signs that make the frame uniform (Mezzadri 2007)
  return (frame @ R).T
