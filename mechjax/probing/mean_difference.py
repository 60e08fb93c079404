"""Mean differences: the direction from one class mean to another, with or without whitening.

The simplest probe has no parameter to fit beyond two means, and it is hard to beat where examples are few: it cannot
overfit a direction of small variance, and its direction is the one that moves the mean of one class to that of the
other, which matters for interventions (Marks and Tegmark 2023, arXiv 2310.06824, section 5).

    probe = fit_mean_difference(x, sport)                     nearest class mean
    probe = fit_mean_difference(x, sport, shrinkage=0.1)      nearest in the whitened space (linear discriminant)
    probe.contrast                                            mean of class 1 minus mean of class 0

With class means m_c and the pooled covariance S within classes, shrunk to a multiple of the identity,

    score of c = m_c' S^-1 x - m_c' S^-1 m_c / 2,      S = (1 - a) C + a tr(C)/D I

up to a term that all classes share. Without shrinkage S is the identity; with a = 1 the classes are those of the
nearest mean again, and with a near 0 those of the linear discriminant with equal priors, which scikit-learn computes as
LinearDiscriminantAnalysis(solver='lsqr', shrinkage=a). The inverse is computed in the span of the examples, so that D
may be larger than B. Several classes are compared with the nearest mean; leading axes are problems.

Sharp edges: thresholds lie half-way between means, whatever the frequencies of the classes. Class means are subtracted
from their own mean in the coefficients, which changes no prediction.

Letters: B examples, D features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int

from mechjax.errors import ProbingError
from mechjax.probing.batching import BatchLayout
from mechjax.probing.centring import Centring
from mechjax.probing.checks import Features, Labels, as_number, check_features, check_labels
from mechjax.probing.linear import LinearProbe


def fit_mean_difference(
  features: Features, labels: Labels, *, shrinkage: float | None = None
) -> LinearProbe:
  """Fits a probe of class means, or one for each problem.

  Args:
    features: [..., B, D].
    labels: classes [..., B].
    shrinkage: a, over 0 and at most 1: the share of the identity in the covariance; None for no whitening.

  Returns:
    The probe. Its coefficients of class c are S^-1 (m_c - mean of all m_c).

  Raises:
    ProbingError: features and labels as for `fit_logistic`; a shrinkage out of range; classes without variance, which
      whitening would divide by.
  """
  share = None if shrinkage is None else as_number('shrinkage', shrinkage)
  if share is not None and not 0 < share <= 1:
    raise ProbingError(
      f'shrinkage={shrinkage!r:.100}; expected None, or a number over 0 and up to 1'
    )
  x = check_features(features)
  encoded = check_labels(labels, x.shape[-2])
  layout = BatchLayout.of(x.shape[:-2], encoded.codes.shape[:-1])
  parts = []
  for group, codes in zip(layout.group(x), layout.spread(encoded.codes, 1)):
    centred = Centring.of(group[None], True, False)
    fitted = [_fit(centred.features[0], c, len(encoded.classes), share) for c in codes]
    scaled, offsets = (np.stack(part)[None] for part in zip(*fitted))
    raw, intercepts = centred.to_raw(scaled, offsets)
    parts.append((raw[0], intercepts[0], np.repeat(centred.constant, len(codes), 0)))
  coefficients, intercepts, constant = (layout.restore(np.stack(part)) for part in zip(*parts))
  return LinearProbe(coefficients, intercepts, encoded.classes, constant)


def _fit(
  x: Float64[np.ndarray, 'B D'],
  codes: Int[np.ndarray, ' B'],
  n_classes: int,
  shrinkage: float | None,
) -> tuple[Float64[np.ndarray, 'classes D'], Float64[np.ndarray, ' classes']]:
  """Coefficients and intercepts of one problem, of centred features."""
  members = codes == np.arange(n_classes)[:, None]
  means = (members / members.sum(1, keepdims=True)) @ x
  whitened = means if shrinkage is None else _whiten(means, x - means[codes], shrinkage)
  offsets = -np.sum(means * whitened, 1) / 2
  middle = whitened.mean(0)
  return whitened - middle, offsets


def _whiten(
  means: Float64[np.ndarray, 'classes D'], within: Float64[np.ndarray, 'B D'], shrinkage: float
) -> Float64[np.ndarray, 'classes D']:
  """S^-1 of each mean, by the singular vectors of the deviations from class means."""
  n, D = within.shape
  _, s, v = np.linalg.svd(within, full_matrices=False)
  variance = s**2 / n
  floor = shrinkage * variance.sum() / D
  if not floor > 0:
    raise ProbingError(
      'all examples of a class are equal, in every class',
      cause='one prompt for each class, several times',
      hint='shrinkage=None',
    )
  along = means @ v.T
  return (means - along @ v) / floor + (along / ((1 - shrinkage) * variance + floor)) @ v
