"""Logistic probes: multinomial logistic regression with an l2 penalty, many probes in one solve.

A probe asks what can be read linearly from activations. It is fitted for every layer, every label and every penalty, so
one call takes them all, by leading axes that broadcast (`batching`):

    probe = fit_logistic(x, sport, l2=1.0)                              x [B, D], sport [B]
    probe.predict(held_out), probe.coefficients                         [B], [classes, D]
    probes = fit_logistic(layers[:, None], sport, l2=[0.1, 1.0, 10.0])  layers [L, B, D]: L x 3 probes
    probe = fit_logistic(x, sport, l2=choose_l2(x, sport).l2)           l2 by cross-validation

The objective is that of scikit-learn's LogisticRegression with C = 1 / l2, and so are the solutions:

    three classes or more    sum of -log softmax(W x + b)[class] + l2/2 |W|^2
    two classes              sum of -log sigmoid(+-(w x + c))    + l2/2 |w|^2, with rows -w/2 and w/2, so that the
                             softmax of the two scores is the sigmoid; scikit-learn's `coef_` is `probe.contrast`

Intercepts are not penalised, and those of all classes sum to 0. All numbers are float64 on the host. A fit that has not
converged is an error, and so is one whose gradient does not vanish when it is computed once more, without the shortcuts
of the solver, at the coefficients that are returned.

Sharp edges: the penalty has a meaning relative to the size of the features, so compare layers with `standardise=True`,
which divides by the standard deviations of the training part. l2 has to be positive, because classes that can be
separated, as they always can with fewer examples than features, have no other finite solution.

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.special
from jaxtyping import Float64, Int

from mechjax.errors import ProbingError
from mechjax.probing.batching import BatchLayout
from mechjax.probing.centring import Centring
from mechjax.probing.checks import (
  Features,
  Labels,
  Penalties,
  check_count,
  check_features,
  check_labels,
  check_penalty,
  check_share,
)
from mechjax.probing.linear import LinearProbe
from mechjax.probing.newton import Minimum, minimise, residuals
from mechjax.probing.spaces import each, multiply, norm

TOLERANCE = 1e-7
"""Default bound of the relative error of the coefficients."""


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticProbe(LinearProbe):
  """A logistic probe, or several that were fitted at once; see `LinearProbe` for the other attributes.

  Attributes:
    l2: penalty of each problem.
    iterations: number of Newton steps of each problem.
    error: bound of the relative error of the coefficients (of standardised features, if these were fitted).
  """

  l2: Float64[np.ndarray, '*problems']
  iterations: Int[np.ndarray, '*problems']
  error: Float64[np.ndarray, '*problems']

  def log_probabilities(self, features: Features) -> Float64[np.ndarray, '*problems B classes']:
    """Logarithms of the probabilities of each class; arguments and errors as for `scores`."""
    return scipy.special.log_softmax(self.scores(features), axis=-1)

  def probabilities(self, features: Features) -> Float64[np.ndarray, '*problems B classes']:
    """Probabilities of each class; arguments and errors as for `scores`."""
    return scipy.special.softmax(self.scores(features), axis=-1)


def fit_logistic(
  features: Features,
  labels: Labels,
  l2: Penalties = 1.0,
  *,
  fit_intercept: bool = True,
  standardise: bool = False,
  tolerance: float = TOLERANCE,
  max_iterations: int = 100,
) -> LogisticProbe:
  """Fits a probe, or one for each problem.

  Args:
    features: [..., B, D].
    labels: classes [..., B]; all problems have the same classes.
    l2: penalty of each problem; 1 / C of scikit-learn.
    fit_intercept: whether there is an intercept, which is not penalised.
    standardise: whether features are divided by their standard deviations, for the fit alone.
    tolerance: largest relative error of W, bounded by the gradient or the last Newton step (`newton`).
    max_iterations: maximum number of Newton steps.

  Returns:
    The probe, with the leading axes of features, labels and l2, broadcast.

  Raises:
    ProbingError: features with NaN or infinity, or which are all constant; labels that are not classes, or of another
      number than examples; one class only, or a class with one member; l2 that is not positive; axes that do not
      broadcast; a problem that has not converged.
  """
  x = check_features(features)
  encoded = check_labels(labels, x.shape[-2])
  penalty = check_penalty(l2)
  check_share('tolerance', tolerance)
  check_count('max_iterations', max_iterations, 1)
  layout = BatchLayout.of(x.shape[:-2], encoded.codes.shape[:-1], penalty.shape)
  groups = layout.group(x)
  codes, l2_of = layout.spread(encoded.codes, 1), layout.spread(penalty, 0)
  parts = []
  for some in layout.blocks(x.shape[-2], min(x.shape[-2:])):
    centred = Centring.of(groups[some], fit_intercept, standardise)
    settings = fit_intercept, tolerance, max_iterations
    fitted = _fit_block(centred, codes[some], len(encoded.classes), l2_of[some], *settings)
    parts.append((*fitted, np.repeat(centred.constant[:, None], layout.members, 1)))
  found = [layout.restore(np.concatenate(part)) for part in zip(*parts)]
  coefficients, intercepts, iterations, error, left, constant = found
  probe = LogisticProbe(
    coefficients, intercepts, encoded.classes, constant, layout.restore(l2_of), iterations, error
  )
  _check_converged(probe, left, tolerance)
  return probe


def _fit_block(
  centred: Centring,
  codes: Int[np.ndarray, 'groups members B'],
  n_classes: int,
  l2: Float64[np.ndarray, 'groups members'],
  fit_intercept: bool,
  tolerance: float,
  max_iterations: int,
) -> tuple[np.ndarray, ...]:
  """Coefficients, intercepts, iterations and errors of some groups, by member."""
  # Of two classes the sum of the squares of the rows, -w/2 and w/2, is half of the square of w.
  penalty = 2 * l2 if n_classes == 2 else l2
  x = centred.features
  found = minimise(x, codes, n_classes, penalty, fit_intercept, tolerance, max_iterations)
  left = _measure_gradient(x, codes, found, penalty, fit_intercept)
  return *centred.to_raw(found.weights, found.intercepts), found.iterations, found.error, left


def _measure_gradient(
  x: Float64[np.ndarray, 'groups B D'],
  codes: Int[np.ndarray, 'groups members B'],
  found: Minimum,
  penalty: Float64[np.ndarray, 'groups members'],
  fit_intercept: bool,
) -> Float64[np.ndarray, 'groups members']:
  """Norm of the gradient over the sum of the norms of its terms, one for each example."""
  weights = found.weights
  scores = multiply(weights, x.swapaxes(1, 2)) + found.intercepts[..., None]
  members = codes[:, :, None] == np.arange(weights.shape[2])[:, None]
  residual = residuals(scipy.special.softmax(scores, axis=2), members)
  gradient = multiply(residual, x) + each(penalty) * weights
  each_example = np.linalg.norm(residual, axis=2)
  terms = multiply(each_example[:, :, None], np.sqrt(np.einsum('gbd,gbd->gb', x, x))[..., None])
  in_b = fit_intercept * np.linalg.norm(residual.sum(-1), axis=-1) / each_example.sum(-1)
  return np.maximum(norm(gradient) / terms[..., 0, 0], in_b)


def _check_converged(
  probe: LogisticProbe, left: Float64[np.ndarray, '*problems'], tolerance: float
) -> None:
  bad = ~((probe.error <= tolerance) & (left <= 10 * max(tolerance, 1e-10)))
  if not bad.any():
    return
  place = np.unravel_index(int(bad.argmax()), bad.shape)
  raise ProbingError(
    f'{int(bad.sum())} of {bad.size} problems have not converged: after {probe.iterations[place]} Newton steps the '
    f'relative error is up to {probe.error[place]:.1e}, and the gradient {left[place]:.1e} of its terms',
    where=f'problem {[int(i) for i in place]}, l2 {probe.l2[place]:.3g}, tolerance {tolerance:.1e}',
    cause='features that are very large relative to the penalty, so that rounding decides',
    hint='standardise=True, a larger l2, or more max_iterations',
  )
