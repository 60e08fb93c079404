"""Ridge probes: least squares with an l2 penalty, for values and for classes, with the penalty in closed form.

Where a value is probed for (a year, a position), or where thousands of probes are compared, squares are enough: a
decomposition of the features serves every label and every penalty, and the loss on held-out examples needs no folds.

    probe = fit_ridge(x, year, l2=10.0)                    values [B]; one coefficient for each feature
    probe = fit_ridge_classifier(x, sport, l2=10.0)        a `LinearProbe`
    probe = fit_ridge_classifier(x, sport, choose_ridge_l2(x, sport).l2)

The objective is that of scikit-learn's Ridge and RidgeClassifier with alpha = l2,

    sum of (w x + b - y)^2 + l2 |w|^2

with an intercept that is not penalised; a classifier regresses 1 for each class and -1 for all others. The error of an
example that is left out is its error over one minus its leverage (Allen 1974, PRESS), which `choose_ridge_l2` minimises
as RidgeCV and RidgeClassifierCV do.

Everything is computed in the singular vectors of the centred features, at most as many as examples, so that no width D
is too large. Leading axes are problems, as in `fit_logistic`.

Sharp edge: the penalty has twice the meaning of that of `fit_logistic`, whose objective halves it.

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float64, Int, Num

from mechjax import host_arrays
from mechjax.errors import ProbingError
from mechjax.probing.batching import BatchLayout
from mechjax.probing.centring import Centring
from mechjax.probing.checks import (
  EncodedLabels,
  Features,
  Labels,
  Penalties,
  check_features,
  check_labels,
  check_penalty,
  check_width,
  is_real,
)
from mechjax.probing.cross_validation import L2S, PenaltyChoice, check_candidates
from mechjax.probing.linear import LinearProbe

Targets = Num[np.ndarray | Array, '*_ B']


@dataclasses.dataclass(frozen=True, eq=False)
class RidgeProbe:
  """A linear probe of a value, or several that were fitted at once.

  Attributes:
    coefficients: of raw features.
    intercepts: value at features of 0.
    constant: features that did not vary in training, whose coefficients are exactly 0.
    l2: penalty of each problem.
  """

  coefficients: Float64[np.ndarray, '*problems D']
  intercepts: Float64[np.ndarray, '*problems']
  constant: Bool[np.ndarray, '*problems D']
  l2: Float64[np.ndarray, '*problems']

  def predict(self, features: Features) -> Float64[np.ndarray, '*problems B']:
    """Values of examples.

    Args:
      features: raw features [B, D], the same for all problems; or [..., B, D] with the axes of the problems.

    Raises:
      ProbingError: NaN, another width, or other leading axes.
    """
    x = check_features(features)
    check_width(x, self.coefficients.shape[-1])
    try:
      return (x @ self.coefficients[..., None])[..., 0] + self.intercepts[..., None]
    except ValueError as e:
      raise ProbingError(
        f'features of shape {x.shape} for problems of shape {self.intercepts.shape}'
      ) from e


def fit_ridge(
  features: Features,
  values: Targets,
  l2: Penalties = 1.0,
  *,
  fit_intercept: bool = True,
  standardise: bool = False,
) -> RidgeProbe:
  """Fits a probe of a value, or one for each problem.

  Args:
    features: [..., B, D].
    values: values [..., B].
    l2: penalty of each problem; alpha of scikit-learn.
    fit_intercept: whether there is an intercept, which is not penalised.
    standardise: whether features are divided by their standard deviations, for the fit alone.

  Raises:
    ProbingError: features or values with NaN or infinity; another number of values than examples; features that are all
      constant; l2 that is not positive; axes that do not broadcast.
  """
  solver = _Solver.of(features, values, l2, fit_intercept, standardise)
  coefficients, intercepts, constant = solver.solve()
  return RidgeProbe(coefficients, intercepts, constant, solver.restored_l2)


def fit_ridge_classifier(
  features: Features,
  labels: Labels,
  l2: Penalties = 1.0,
  *,
  fit_intercept: bool = True,
  standardise: bool = False,
) -> LinearProbe:
  """Fits a probe of classes; arguments and errors as for `fit_ridge`, and labels as for `fit_logistic`."""
  encoded = check_labels(labels, check_features(features).shape[-2])
  solver = _Solver.of(
    np.asarray(features)[..., None, :, :],
    _one_against_all(encoded),
    check_penalty(l2)[..., None],
    fit_intercept,
    standardise,
  )
  coefficients, intercepts, constant = solver.solve()
  return LinearProbe(coefficients, intercepts, encoded.classes, constant[..., 0, :])


def leave_one_out(
  features: Features,
  values: Targets,
  l2: Penalties = 1.0,
  *,
  fit_intercept: bool = True,
  standardise: bool = False,
) -> Float64[np.ndarray, '*problems B']:
  """Errors, value minus prediction, of the probe that is fitted to all other examples, for each example.

  In closed form: (y - prediction) / (1 - leverage). With `standardise` the constants are those of all examples.

  Args, errors: as for `fit_ridge`.
  """
  return _Solver.of(features, values, l2, fit_intercept, standardise).leave_one_out()


def choose_ridge_l2(
  features: Features,
  labels: Labels,
  candidates: Sequence[float] | Float64[np.ndarray, ' candidates'] = L2S,
  *,
  fit_intercept: bool = True,
  standardise: bool = False,
) -> PenaltyChoice:
  """Chooses the penalty of a classifier by its mean squared error on examples that are left out one by one.

  Args:
    features, labels, fit_intercept, standardise: as for `fit_ridge_classifier`.
    candidates: penalties to try.

  Raises:
    ProbingError: as `fit_ridge_classifier`; fewer than two candidates, or the same twice.
  """
  encoded = check_labels(labels, check_features(features).shape[-2])
  l2s = check_candidates(candidates)
  x, y = np.asarray(features)[..., None, None, :, :], _one_against_all(encoded)[..., None, :, :]
  options = {'fit_intercept': fit_intercept, 'standardise': standardise}
  errors = leave_one_out(x, y, l2s[:, None], **options)
  return PenaltyChoice.of(l2s, np.mean(errors**2, axis=(-2, -1)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Solver:
  """Problems of ridge regression, by the singular vectors of their features, one group at a time.

  Attributes:
    layout: leading axes.
    x: features of each group.
    y: values of each problem.
    l2: penalty of each problem.
    fit_intercept, standardise: as for `fit_ridge`.
  """

  layout: BatchLayout
  x: Float64[np.ndarray, 'groups B D']
  y: Float64[np.ndarray, 'groups members B']
  l2: Float64[np.ndarray, 'groups members']
  fit_intercept: bool
  standardise: bool

  @classmethod
  def of(
    cls, features: Features, values: Targets, l2: Penalties, fit_intercept: bool, standardise: bool
  ) -> _Solver:
    x, penalty = check_features(features), check_penalty(l2)
    y = _check_values(values, x.shape[-2])
    layout = BatchLayout.of(x.shape[:-2], y.shape[:-1], penalty.shape)
    spread = layout.spread(y, 1), layout.spread(penalty, 0)
    return cls(layout, layout.group(x), *spread, fit_intercept, standardise)

  @property
  def restored_l2(self) -> Float64[np.ndarray, '*problems']:
    return self.layout.restore(self.l2)

  def solve(
    self,
  ) -> tuple[
    Float64[np.ndarray, '*problems D'],
    Float64[np.ndarray, '*problems'],
    Bool[np.ndarray, '*problems D'],
  ]:
    """Coefficients, intercepts and constant features of each problem."""
    parts = []
    for x, y, l2 in zip(self.x, self.y, self.l2):
      centred, mean, (u, s, v) = self._decompose(x, y)
      w = ((y - mean) @ u) * (s / (s**2 + l2[:, None])) @ v
      raw, intercepts = centred.to_raw(w[None, :, None], mean[None])
      parts.append((raw[0, :, 0], intercepts[0, :, 0], np.repeat(centred.constant, len(y), 0)))
    coefficients, intercepts, constant = (self.layout.restore(np.stack(p)) for p in zip(*parts))
    return coefficients, intercepts, constant

  def leave_one_out(self) -> Float64[np.ndarray, '*problems B']:
    parts = []
    for x, y, l2 in zip(self.x, self.y, self.l2):
      _, mean, (u, s, _) = self._decompose(x, y)
      u = u[:, s > 1e-14 * s[0]]
      # One minus the leverage has a part that no feature fits, and one that the penalty holds back.
      free = 1 - np.sum(u**2, 1) - self.fit_intercept / len(x)
      free = np.where(free < 1e-12, 0, free)
      back = l2[:, None] / (s[: u.shape[1]] ** 2 + l2[:, None])
      along = (y - mean) @ u
      # Where the features fit everything, as they do with D > B, nothing is left of the values but rounding.
      outside = np.where(free > 0, (y - mean) - along @ u.T, 0)
      error = outside + (along * back) @ u.T
      parts.append(error / (free + back @ (u**2).T))
    return self.layout.restore(np.stack(parts))

  def _decompose(
    self, x: Float64[np.ndarray, 'B D'], y: Float64[np.ndarray, 'members B']
  ) -> tuple[Centring, Float64[np.ndarray, 'members 1'], tuple[np.ndarray, ...]]:
    """Centred features, the means of the values, and the singular value decomposition of the features."""
    centred = Centring.of(x[None], self.fit_intercept, self.standardise)
    mean = y.mean(1, keepdims=True) * self.fit_intercept
    return centred, mean, np.linalg.svd(centred.features[0], full_matrices=False)


def _one_against_all(encoded: EncodedLabels) -> Float64[np.ndarray, '*problems classes B']:
  """1 at the examples of each class, and -1 at all others."""
  every: Int[np.ndarray, ' classes'] = np.arange(len(encoded.classes))
  return np.where(encoded.codes[..., None, :] == every[:, None], 1.0, -1.0)


def _check_values(values: Targets, n: int) -> Float64[np.ndarray, '*problems B']:
  """Returns values in float64; raises ProbingError for NaN, other types, or another number of them."""
  array = host_arrays.as_host('values', values, ProbingError)
  if not is_real(array) or not array.ndim or array.shape[-1] != n:
    raise ProbingError(
      f'values of shape {array.shape} and type {array.dtype} for {n} examples',
      hint='one number for each row of the features; fit_ridge_classifier(features, labels) for classes',
    )
  found = array.astype(np.float64)
  if not np.isfinite(found).all():
    raise ProbingError('the values contain NaN or infinity')
  return found
