"""Correlation, AUROC and balanced accuracy of scores, which are NaN with a reason where they are undefined.

    pearson(predicted, true)                   Statistic(value=0.73, reason='')
    auroc([0.9, 0.4], [0.1, 0.4])              Statistic(value=0.875, reason='')
    auroc([], [0.1])                           Statistic(value=nan, reason='no positives')

A latent that is not active in any scored text has no correlation, and a class without a reply has no AUROC. A score
of 0 or 0.5 in their place would enter means as if it were measured; so the value is NaN, and the reason is counted by
the report.

All are computed in float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from mechjax import probing
from mechjax.errors import InterpretationError

_CONSTANT = 1e-12
"""Spread in relation to the largest value below which numbers differ by rounding alone."""

Values = Num[np.ndarray, ' n'] | Sequence[float]


class Statistic(NamedTuple):
  """A number, or the reason why it is undefined.

  Attributes:
    value: the number; NaN if it is undefined.
    reason: why it is undefined; '' if it is defined.
  """

  value: float
  reason: str = ''


def make_undefined(reason: str) -> Statistic:
  """NaN with a reason."""
  return Statistic(math.nan, reason)


def pearson(predicted: Values, true: Values) -> Statistic:
  """Pearson's correlation; undefined for fewer than two numbers, or where either side is constant.

  Args:
    predicted: numbers [n].
    true: numbers [n].

  Raises:
    InterpretationError: two lengths, NaN or infinity.
  """
  x, y = _as_pair(predicted, true)
  reason = _find_constant(x, 'predictions') or _find_constant(y, 'true activations')
  if reason:
    return make_undefined(reason)
  x, y = x / np.abs(x).max(), y / np.abs(y).max()
  x, y = x - x.mean(), y - y.mean()
  value = float(np.sum(x * y) / math.sqrt(np.sum(x * x) * np.sum(y * y)))
  return Statistic(min(1.0, max(-1.0, value)))


def auroc(positives: Values, negatives: Values) -> Statistic:
  """Probability that a positive has a larger score than a negative, where equal scores count half.

  Args:
    positives: scores [n] of the examples of the class; undefined without any.
    negatives: scores [m] of the others; undefined without any.

  Raises:
    InterpretationError: NaN or infinity.
  """
  above, below = _check_finite('positives', positives), _check_finite('negatives', negatives)
  if not len(above) or not len(below):
    return make_undefined(_find_empty(above, below))
  scores = np.concatenate([below, above])[:, None]
  labels = np.repeat([0, 1], [len(below), len(above)])
  return Statistic(float(probing.auc(scores, labels)[1, 0]))


def balanced_accuracy(positives: Values, negatives: Values, threshold: float = 0.5) -> Statistic:
  """Mean of the shares of positives above a threshold and of negatives not above it.

  Args, errors: as for `auroc`.
  """
  above, below = _check_finite('positives', positives), _check_finite('negatives', negatives)
  if not len(above) or not len(below):
    return make_undefined(_find_empty(above, below))
  return Statistic(float((np.mean(above > threshold) + np.mean(below <= threshold)) / 2))


def share_explained(predicted: Values, true: Values) -> Statistic:
  """Explained share of the uncentred square, 1 - mean (a - e)^2 / mean a^2, after a linear calibration.

  The calibration e = slope E + intercept is the least-squares fit to the same numbers, with a slope of at least 0, so
  that predictions of the wrong sign gain nothing. The square is not centred: the mean of a alone explains a share
  above 0. So this is not R^2.

  Args:
    predicted: E, numbers [n].
    true: a, numbers [n]; undefined if all are 0.

  Raises:
    InterpretationError: two lengths, NaN or infinity.
  """
  x, y = _as_pair(predicted, true)
  square = float(np.mean(y * y)) if len(y) else 0.0
  if square == 0:
    return make_undefined('true activations are all 0')
  r = pearson(x, y).value
  explained = max(r, 0.0) ** 2 if math.isfinite(r) else 0.0
  return Statistic(1 - (1 - explained) * float(np.var(y)) / square)


def _as_pair(
  predicted: Values, true: Values
) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, ' n']]:
  """Both sides in float64, after the check of their lengths."""
  x, y = _check_finite('predictions', predicted), _check_finite('true activations', true)
  if len(x) != len(y):
    raise InterpretationError(f'{len(x)} predictions and {len(y)} true activations')
  return x, y


def _check_finite(name: str, values: Values) -> Float[np.ndarray, ' n']:
  """Returns one axis of finite numbers in float64."""
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not np.isfinite(x).all():
    raise InterpretationError(
      f'{name} of shape {x.shape} with {int(np.sum(~np.isfinite(x)))} numbers that are not finite',
      hint='one axis; leave out replies that failed',
    )
  return x


def _find_constant(x: Float[np.ndarray, ' n'], name: str) -> str:
  """Reason why numbers have no correlation; '' if they have one."""
  if len(x) < 2:
    return f'{len(x)} {name}; a correlation needs two'
  constant = np.ptp(x) <= _CONSTANT * np.abs(x).max()
  return f'{name} are constant' if constant else ''


def _find_empty(positives: Float[np.ndarray, ' n'], negatives: Float[np.ndarray, ' m']) -> str:
  """Reason why two classes cannot be compared."""
  empty = [n for n, x in (('positives', positives), ('negatives', negatives)) if not len(x)]
  return f'no {" and no ".join(empty)}'
