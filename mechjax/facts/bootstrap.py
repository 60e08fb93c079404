"""Standard errors by resampling.

A median of shares over 60 athletes, or of cosines over the tokens of 20 texts, has no simple formula for its error, and
tokens of one text are not independent. So the units that are independent (names, texts) are drawn again with
replacement, and the standard deviation of the statistic over such draws is its standard error (Efron 1979).

    error = error_of_median(shares)                      units are rows
    error = error_of_median(cosines, units=text)         all tokens of a text are drawn together

Sharp edge: with fewer than two units there is no error, and it is NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from mechjax.errors import FactsError
from mechjax.facts.finite import check_count
from mechjax.host_arrays import check_seed


def error_of_median(
  values: Float64[np.ndarray, 'rows ...'],
  units: Int[np.ndarray, ' rows'] | None = None,
  n: int = 200,
  seed: int = 0,
) -> Float64[np.ndarray, ' ...']:
  """Standard error of the median over rows.

  Args:
    values: finite numbers, one statistic for each trailing index.
    units: the independent unit that each row belongs to; None if each row is one.
    n: number of draws.
    seed: seed of the draws.

  Returns:
    The errors, with the trailing axes of `values`; NaN for fewer than two units.

  Raises:
    FactsError: fewer than two draws.
  """
  check_count('n', n, 2)
  rows = np.arange(len(values))
  groups = rows[:, None] if units is None else [rows[units == u] for u in np.unique(units)]
  if len(groups) < 2:
    return np.full(values.shape[1:], np.nan)
  random = np.random.default_rng(check_seed(seed, FactsError))
  medians = []
  for _ in range(n):
    drawn = random.integers(len(groups), size=len(groups))
    medians.append(np.median(values[np.concatenate([groups[i] for i in drawn])], axis=0))
  return np.asarray(np.std(medians, axis=0, ddof=1))


def error_of_mean(values: Float64[np.ndarray, 'rows ...']) -> Float64[np.ndarray, ' ...']:
  """Standard error of the mean over independent rows; NaN for a single row."""
  if len(values) < 2:
    return np.full(values.shape[1:], np.nan)
  return np.asarray(values.std(0, ddof=1) / np.sqrt(len(values)))
