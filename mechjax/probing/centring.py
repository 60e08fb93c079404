"""Features relative to their means, in units of their standard deviations if wanted, and the way back to raw features.

An intercept that is not penalised is the same as centred features, so every probe is fitted on these. The constants
are those of the training part alone, and a probe holds coefficients of raw features, so that they are never computed
from other examples.

A feature that does not vary in the training part has no coefficient that the data would decide. It is exactly 0, and
the probe's `constant` marks it. Without an intercept only a feature of zeros is such a feature.

Sharp edge: a feature counts as constant if it varies by less than its own rounding in float64, as the mean of equal
numbers does.

Letters: B examples, D features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64

from mechjax.errors import ProbingError

_ROUNDING = 8 * np.finfo(np.float64).eps


@dataclasses.dataclass(frozen=True, eq=False)
class Centring:
  """Training features as a fit sees them, and their constants.

  Attributes:
    features: (x - mean) / scale, and 0 where constant.
    mean: means, or 0 without an intercept.
    scale: standard deviations of the population, or 1.
    constant: features whose coefficient is 0.
  """

  features: Float64[np.ndarray, 'groups B D']
  mean: Float64[np.ndarray, 'groups D']
  scale: Float64[np.ndarray, 'groups D']
  constant: Bool[np.ndarray, 'groups D']

  @classmethod
  def of(
    cls, features: Float64[np.ndarray, 'groups B D'], fit_intercept: bool, standardise: bool
  ) -> Centring:
    """Centres features.

    Raises:
      ProbingError: no feature of a group varies.
    """
    mean = features.mean(1)
    low, high = features.min(1), features.max(1)
    largest = np.maximum(-low, high)
    still = high - low <= _ROUNDING * largest
    _check_some_vary(still)
    made = features - mean[:, None] if fit_intercept or standardise else features
    scale = np.ones_like(mean)
    if standardise:
      scale[~still] = np.sqrt(np.einsum('gbd,gbd->gd', made, made) / features.shape[1])[~still]
      made = (made if fit_intercept else features) / scale[:, None]
    constant = still if fit_intercept else largest == 0
    if constant.any():
      made = np.where(constant[:, None], 0.0, made)
    return cls(made, mean if fit_intercept else np.zeros_like(mean), scale, constant)

  def to_raw(
    self,
    coefficients: Float[np.ndarray, 'groups members classes D'],
    intercepts: Float[np.ndarray, 'groups members classes'],
  ) -> tuple[
    Float64[np.ndarray, 'groups members classes D'], Float64[np.ndarray, 'groups members classes']
  ]:
    """Coefficients and intercepts of raw features, from those of centred ones."""
    raw = coefficients / self.scale[:, None, None]
    raw = np.where(self.constant[:, None, None], 0.0, raw)
    return raw, intercepts - np.einsum('gmcd,gd->gmc', raw, self.mean)


def _check_some_vary(still: Bool[np.ndarray, 'groups D']) -> None:
  flat = np.flatnonzero(still.all(1))
  if len(flat):
    raise ProbingError(
      f'all {still.shape[1]} features are constant',
      where=f'group {flat[0]} of {len(still)}' if len(still) > 1 else None,
      cause='a position or a layer at which all prompts are equal, or neurons that never fire',
    )
