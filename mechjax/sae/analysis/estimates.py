"""Shares of explained variance, and other ratios of sums, with standard errors over blocks of contexts.

Tokens of one context are alike, so an error over tokens is too small. Sums are kept for each block of contexts, and a
ratio R = sum_b Y_b / sum_b Z_b has the standard error of a ratio estimate,

    SE^2 = K / (K - 1) sum_b (Y_b - R Z_b)^2 / (sum_b Z_b)^2        over K blocks

    explain(residual, total).interval()      1 - R, with an interval by Student's t with K - 1 degrees of freedom
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used
from jaxtyping import Float64

from mechjax.errors import SAEError


@dataclasses.dataclass(frozen=True)
class BlockEstimate:
  """A number with its standard error over blocks of contexts.

  Attributes:
    value: the number; NaN where it does not exist.
    standard_error: its standard error.
    n_blocks: K, number of blocks.
  """

  value: float
  standard_error: float
  n_blocks: int

  def interval(self, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the interval by Student's t.

    Raises:
      SAEError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
      raise SAEError(f'confidence={confidence!r}; expected a number between 0 and 1')
    reach = float(scipy.stats.t.ppf((1 + confidence) / 2, self.n_blocks - 1)) * self.standard_error
    return self.value - reach, self.value + reach

  def __str__(self) -> str:
    return f'{self.value:.4f} ± {self.standard_error:.4f}'


def divide(
  numerator: Float64[np.ndarray, ' blocks'], denominator: Float64[np.ndarray, ' blocks']
) -> BlockEstimate:
  """Ratio of the sums of two quantities over blocks.

  Raises:
    SAEError: fewer than two blocks.
  """
  n = len(numerator)
  if n < 2:
    raise SAEError(f'{n} blocks give no standard error', hint='at least two')
  total = float(denominator.sum())
  if not total > 0:
    return BlockEstimate(np.nan, np.nan, n)
  ratio = float(numerator.sum()) / total
  square = np.sum(np.square(numerator - ratio * denominator)) * n / (n - 1)
  return BlockEstimate(ratio, float(np.sqrt(square)) / total, n)


def explain(
  residual: Float64[np.ndarray, ' blocks'], total: Float64[np.ndarray, ' blocks']
) -> BlockEstimate:
  """R^2: one minus the ratio of the residual to the total sum of squares.

  Raises:
    SAEError: fewer than two blocks.
  """
  left = divide(residual, total)
  return BlockEstimate(1 - left.value, left.standard_error, left.n_blocks)
