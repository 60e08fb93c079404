"""Linear probes: scores of classes that are linear in the features, with one row of coefficients for each class.

All probes of this package come out in this form, whichever way they were fitted, so that everything after the fit
(predictions, AUC, patches of a probe's subspace) is written once:

    scores = x W^T + b,    prediction = the class with the largest score

The leading axes of W and b are problems that were fitted at once; `probe[3]` is one of them.

Two classes have two rows as well. Of a logistic probe or a ridge classifier the rows are opposite, and the single row
of scikit-learn's `coef_` is `probe.contrast`: row 1 minus row 0 for logistic regression, half of that for ridge.

Sharp edges: a probe takes raw features, whatever its fit standardised. Of equal scores the first class is predicted.

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from types import EllipsisType
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from mechjax.errors import ProbingError
from mechjax.probing.checks import Features, check_features, check_width

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
  """A linear probe, or several that were fitted at once.

  Attributes:
    coefficients: W, of raw features.
    intercepts: b.
    classes: label of each row of W, sorted.
    constant: features that did not vary in training, whose coefficients are exactly 0.
  """

  coefficients: Float64[np.ndarray, '*problems classes D']
  intercepts: Float64[np.ndarray, '*problems classes']
  classes: Shaped[np.ndarray, ' classes']
  constant: Bool[np.ndarray, '*problems D']

  @property
  def shape(self) -> tuple[int, ...]:
    """The leading axes: how many problems there are, () for one probe."""
    return self.intercepts.shape[:-1]

  @property
  def contrast(self) -> Float64[np.ndarray, '*problems D']:
    """Row 1 minus row 0 of a probe of two classes: the direction towards the second class.

    Raises:
      ProbingError: more than two classes.
    """
    if len(self.classes) != 2:
      raise ProbingError(
        f'a probe of {len(self.classes)} classes has no single direction',
        hint='coefficients has a row for each class; probe_basis(probe) spans their differences',
      )
    return self.coefficients[..., 1, :] - self.coefficients[..., 0, :]

  def scores(self, features: Features) -> Float64[np.ndarray, '*problems B classes']:
    """Scores of each class.

    Args:
      features: raw features [B, D], the same for all problems; or [..., B, D] with the axes of the problems.

    Raises:
      ProbingError: NaN, another width, or other leading axes.
    """
    x = check_features(features)
    check_width(x, self.coefficients.shape[-1])
    try:
      return x @ self.coefficients.swapaxes(-1, -2) + self.intercepts[..., None, :]
    except ValueError as e:
      raise ProbingError(
        f'features of shape {x.shape} for problems of shape {self.shape}',
        hint='[B, D] for all problems, or the leading axes that the probes were fitted with',
      ) from e

  def predict(self, features: Features) -> Shaped[np.ndarray, '*problems B']:
    """The class with the largest score of each example; arguments and errors as for `scores`."""
    return self.classes[self.scores(features).argmax(-1)]

  def __getitem__(self, index: Index) -> Self:
    """Some of the problems, by their leading axes.

    Raises:
      ProbingError: one probe has no leading axes; an index that does not exist.
    """
    shape = self.shape
    numbers: Int[np.ndarray, ' ...'] = np.arange(math.prod(shape)).reshape(shape)
    try:  # of the numbers of the problems, so that an ellipsis cannot reach the axes of a problem
      chosen = numbers[index]
    except (IndexError, TypeError) as e:
      raise ProbingError(f'index {index} of problems of shape {shape}') from e
    names = [f.name for f in dataclasses.fields(self) if f.name != 'classes']
    values = {name: getattr(self, name) for name in names}
    parts = {k: x.reshape(-1, *x.shape[len(shape) :])[chosen] for k, x in values.items()}
    return dataclasses.replace(self, **{name: np.asarray(x) for name, x in parts.items()})

  def __iter__(self) -> Iterator[Self]:
    """The problems along the first of the leading axes.

    Raises:
      ProbingError: one probe has no leading axes.
    """
    if not self.shape:
      raise ProbingError('one probe, and not several: there is nothing to iterate over')
    return (self[i] for i in range(self.shape[0]))
