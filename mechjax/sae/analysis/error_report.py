"""Results of the regressions of a dictionary's error; `dark_matter` makes them.

    report.vector.value, report.activation.squared_norm.interval()
    print(report)                                        a table
    report.linear(x)                                     the predicted error of an activation

R^2 and FVU are `BlockEstimate`: a number with its standard error over blocks of contexts.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float, Float64

from mechjax import precision
from mechjax.sae.analysis.estimates import BlockEstimate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ErrorMap:
  """Linear prediction of the error of a dictionary, e ~ x @ weights + bias; a pytree.

  Attributes:
    weights: [D, E].
    bias: [E].
  """

  weights: Float[Array, 'D E']
  bias: Float[Array, ' E']

  def __call__(self, x: Float[Array, '*n D']) -> Float[Array, '*n E']:
    """Predicted errors of activations."""
    return precision.matmul(x, self.weights) + self.bias


@dataclasses.dataclass(frozen=True)
class NormPrediction:
  """R^2 of the prediction of |e| and of |e|^2.

  Attributes:
    norm: of |e|.
    squared_norm: of |e|^2.
  """

  norm: BlockEstimate
  squared_norm: BlockEstimate


@dataclasses.dataclass(frozen=True, eq=False)
class DarkMatterReport:
  """Predictability of the error of a dictionary; `dark_matter` defines the numbers.

  Attributes:
    n_tokens: number of tokens.
    n_contexts: number of contexts with a token that counts.
    fvu: sum |e|^2 over sum |x - mean(x)|^2, or |y - mean(y)|^2 for a transcoder.
    fvu_nonlinear: the same of the nonlinear error.
    vector: R^2 of e from x, over all dimensions together.
    per_dimension: R^2 of each dimension of e, [E]; NaN where e is constant.
    activation: R^2 of |e| and |e|^2 from x.
    single: R^2 of |e| and |e|^2 from single numbers, by name.
    linear: the map of the error, fitted to all tokens.
    max_error_share: largest share of sum |e|^2 that one token has.
  """

  n_tokens: int
  n_contexts: int
  fvu: BlockEstimate
  fvu_nonlinear: BlockEstimate
  vector: BlockEstimate
  per_dimension: Float64[np.ndarray, ' E']
  activation: NormPrediction
  single: dict[str, NormPrediction]
  linear: ErrorMap
  max_error_share: float

  @property
  def mean_r2(self) -> float:
    """Mean of R^2 over the dimensions of e that vary, as published."""
    return float(np.nanmean(self.per_dimension))

  def __str__(self) -> str:
    rows = [
      f'{self.n_tokens} tokens of {self.n_contexts} contexts; one token has up to '
      f'{self.max_error_share:.3f} of sum |e|^2',
      f'FVU                          {self.fvu}',
      f'FVU of the nonlinear error   {self.fvu_nonlinear}',
      f'R^2 of the error from x      {self.vector}   (mean over dimensions {self.mean_r2:.4f})',
      'R^2 of                       |e|                 |e|^2',
    ]
    for name, found in {'x': self.activation, **self.single}.items():
      rows.append(f'  from {name:22}{found.norm!s:20}{found.squared_norm}')
    return '\n'.join(rows)
