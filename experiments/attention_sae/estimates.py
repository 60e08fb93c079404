"""Means and ratios with standard errors over units, which are texts or prompts.

mean(effects)                     a number for each column of [units, ...], and its standard error
ratio(parts, wholes)              a ratio of sums over units, and its standard error
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

Pair = dict[str, np.ndarray]
"""'value' and 'se', of one shape."""


def mean(values: Float64[np.ndarray, 'units ...']) -> Pair:
  """Means over units; the error is NaN with one unit."""
  n = len(values)
  return {'value': values.mean(0), 'se': np.sqrt(values.var(0) / (n - 1 or np.nan))}


def ratio(
  parts: Float64[np.ndarray, 'units ...'], wholes: Float64[np.ndarray, 'units ...']
) -> Pair:
  """Ratios of sums over units, R = sum Y / sum Z; NaN where the second sum is 0.

  SE^2 = U / (U - 1) sum_u (Y_u - R Z_u)^2 / (sum_u Z_u)^2, that of a ratio estimate.
  """
  n, whole = len(parts), wholes.sum(0)
  with np.errstate(divide='ignore', invalid='ignore'):
    value = np.where(whole == 0, np.nan, parts.sum(0) / whole)[()]
    squares = np.square(parts - value * wholes).sum(0) * n / (n - 1 or np.nan)
    return {'value': value, 'se': np.sqrt(squares) / np.abs(whole)}
