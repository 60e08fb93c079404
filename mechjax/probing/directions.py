"""Directions to read activations along: principal ones, and random ones as a control.

A sparse probe on latents of a dictionary is compared with the same probe on other columns: on neurons, which are
columns as they are, and on coordinates along directions, which are made here from the training part alone.

    principal_directions(train, 50)        [50, D], orthonormal, in order of variance
    random_directions(train, 50, seed=0)   [50, D], of length 1, uniform over all directions

Both take the training features first, so that `sparse` calls either as `basis=functools.partial(..., n=50)`.

Sharp edge: a principal direction has no sign of its own. Its entry of largest magnitude is positive here.

Letters: B examples, D features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from mechjax.errors import ProbingError
from mechjax.host_arrays import check_seed
from mechjax.probing.checks import Features, check_count, check_features
from mechjax.steering.controls import draw_directions


def principal_directions(features: Features, n: int) -> Float64[np.ndarray, 'n D']:
  """Principal directions of centred features, in order of variance.

  Args:
    features: training features [B, D].
    n: number of directions.

  Raises:
    ProbingError: features with NaN or another number of axes; more directions than the features vary in, which is at
      most the smaller of B - 1 and D.
  """
  x = _check_matrix(features)
  check_count('n', n, 1)
  _, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
  rank = int((s > max(x.shape) * np.finfo(np.float64).eps * max(s[0], np.abs(x).max())).sum())
  if n > rank:
    raise ProbingError(
      f'{n} principal directions of features that vary in {rank}',
      cause='fewer examples than directions',
      hint=f'n={rank}, or more examples',
    )
  found = v[:n]
  largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
  return found * np.sign(largest)


def random_directions(features: Features, n: int, seed: int = 0) -> Float64[np.ndarray, 'n D']:
  """Random directions of length 1, uniform over all directions of the space; see `steering.draw_directions`.

  Args:
    features: training features [B, D], of which the width alone is used.
    n: number of directions.
    seed: the same seed gives the same directions.
  """
  width = _check_matrix(features).shape[1]
  check_seed(seed, ProbingError)
  return draw_directions(np.eye(1, width)[0], check_count('n', n, 1), seed)


def _check_matrix(features: Features) -> Float64[np.ndarray, 'B D']:
  x = check_features(features)
  if x.ndim != 2:
    raise ProbingError(f'features of shape {x.shape}; expected [B, D]')
  return x
