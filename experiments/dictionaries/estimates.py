"""Numbers with their standard errors: over seeds or latents, and over contexts.

    average([0.21, 0.22, 0.20])                        [0.21, 0.006], mean and standard error
    loss_added(found), loss_difference(a, b)           in nats per predicted token, over contexts

Values that do not exist are None; a mean of fewer than two values has no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechjax.sae.analysis.estimates import divide

Pair = list[float | None]
"""A number and its standard error."""


def average(values: Sequence[float | None]) -> Pair:
  """Mean and standard error over seeds or latents; values that do not exist are left out."""
  known = np.array([x for x in values if x is not None and np.isfinite(x)], float)
  if not known.size:
    return [None, None]
  error = float(known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else None
  return [float(known.mean()), error]


def loss_added(found: Mapping[str, Any], key: str = 'added') -> Pair:
  """Loss added by a dictionary, or its divergence 'kl', and the standard error over contexts."""
  ratio = divide(np.array(found[key], float), np.array(found['predicted'], float))
  return [ratio.value, ratio.standard_error]


def loss_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pair:
  """Difference of the losses added by two dictionaries, paired by context."""
  apart = np.array(one['added'], float) - np.array(other['added'], float)
  ratio = divide(apart, np.array(one['predicted'], float))
  return [ratio.value, ratio.standard_error]


def interpolate(at: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
  """Value of a curve at a point, linear in the logarithm of x; None outside the curve.

  Args:
    at: the point, above 0.
    xs: positions, above 0, in any order.
    ys: values.
  """
  order = np.argsort(xs)
  x, y = np.asarray(xs, float)[order], np.asarray(ys, float)[order]
  if not (x > 0).all() or not x[0] <= at <= x[-1]:
    return None
  return float(np.interp(np.log(at), np.log(x), y))
