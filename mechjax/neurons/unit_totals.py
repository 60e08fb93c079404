"""Means and ratios of means over tokens, with standard errors over units of text.

Tokens of one context are not independent, so a standard error over tokens is too small. Here the units are contexts
(or tokens, if the caller has nothing better), and every number is a ratio of two sums R = sum_u Y_u / sum_u Z_u over
units u, a mean being a ratio to the number of tokens. Its standard error is that of a ratio estimate:

    SE^2 = U / (U - 1) sum_u (Y_u - R Z_u)^2 / (sum_u Z_u)^2

Only sums of products over units are kept, so the tokens can be streamed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

COUNT = 'count'
"""Name of the number of tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Estimates:
  """Numbers with standard errors: of each neuron, or of each head.

  Attributes:
    value: the numbers, float64 [...]; NaN where one does not exist, such as a share of an effect that is zero.
    se: their standard errors, float64 [...]; NaN with one unit.
  """

  value: Float64[np.ndarray, ' ...']
  se: Float64[np.ndarray, ' ...']

  @classmethod
  def of_units(cls, values: Float64[np.ndarray, 'units ...']) -> Estimates:
    """Means over units, and their standard errors."""
    n = len(values)
    return cls(values.mean(0), np.sqrt(values.var(0) / (n - 1 or np.nan)))


class UnitTotals:
  """Sums over units of quantities of tokens and neurons, and of their products.

  Attributes:
    names: names of the quantities.
    n_units: number of finished units.
  """

  def __init__(self, names: Sequence[str]):
    self.names = (COUNT, *names)
    self.n_units = 0
    self._sums: np.ndarray | None = None
    self._products: np.ndarray | None = None
    self._open: tuple[int, np.ndarray] | None = None

  def add(
    self, values: Mapping[str, Float64[np.ndarray, 'B F']], units: Int64[np.ndarray, ' B']
  ) -> None:
    """Adds tokens.

    Args:
      values: the quantities of each token and neuron.
      units: unit of each token; the tokens of a unit follow each other, also from call to call.
    """
    first = values[self.names[1]]
    stacked = np.stack([np.ones_like(first), *(values[name] for name in self.names[1:])])
    starts = np.flatnonzero(np.append(True, units[1:] != units[:-1]))
    sums = np.add.reduceat(stacked, starts, axis=1)
    if self._open is not None and self._open[0] == units[0]:
      sums[:, 0] += self._open[1]
      self._open = None
    self.close()
    self._finish(sums[:, :-1])
    self._open = int(units[-1]), sums[:, -1]

  def close(self) -> None:
    """Ends the last unit."""
    if self._open is not None:
      self._finish(self._open[1][:, None])
      self._open = None

  def divide(self, name: str, by: str = COUNT) -> Estimates:
    """A ratio of sums: a mean over tokens, or a quantity as a multiple of another; NaN where the other is zero."""
    assert self._open is None, 'close() first'
    assert self._sums is not None, 'no tokens'
    assert self._products is not None
    i, j, n = self.names.index(name), self.names.index(by), self.n_units
    y, z = self._sums[i], self._sums[j]
    with np.errstate(divide='ignore', invalid='ignore'):
      ratio = np.where(z == 0, np.nan, y / z)
      rest = self._products[i, i] - 2 * ratio * self._products[i, j]
      square = (rest + ratio**2 * self._products[j, j]).clip(0) * n / (n - 1 or np.nan)
      return Estimates(ratio, np.sqrt(square) / np.abs(z))

  def _finish(self, sums: np.ndarray) -> None:
    """Counts units, [Q, units, F]."""
    products = np.einsum('quf,ruf->qrf', sums, sums)
    total = sums.sum(1)
    self.n_units += sums.shape[1]
    self._sums = total if self._sums is None else self._sums + total
    self._products = products if self._products is None else self._products + products
