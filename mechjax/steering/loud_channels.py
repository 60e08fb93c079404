"""Loud channels: coordinates of the stream that drown a difference of means.

In some models a few coordinates are hundreds of times as large as all others. A difference of means is then mostly the
noise of these coordinates, its removal damages every prompt, and no candidate passes a selection. The table that the
diagnosis prints tells such a model from one in which the method works; `find_candidates` takes two adjustments:

    measure_loudness(measure_stream(read, negative, positions))         [positions, L]
    find_candidates(read, positive, negative, positions, adjust=mask_loud)
    find_candidates(read, positive, negative, positions, adjust=divide_by_variance)

Loudness is rho / sqrt(D), rho the largest standard deviation of a coordinate over the median one. In public reports it
is 0.11 to 0.17 for models in which the recipe works and 0.46 to 1.7 for some in which it fails.

Both adjustments look at the negative prompts alone: a coordinate that is loud because of the behaviour must stay.

Sharp edges: the figures come from few models and do not make a threshold. Division by variances changes the direction
everywhere; the length of the difference of means is kept, so that an addition with coefficient 1 has the same size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from mechjax.errors import SteeringError
from mechjax.steering.candidates import Moments


def measure_loudness(moments: Moments) -> Float64[np.ndarray, 'positions L']:
  """Loudness of each position and layer, rho / sqrt(D); NaN where more than half of the coordinates do not vary."""
  deviation = np.sqrt(moments.variance)
  middle = np.median(deviation, -1)
  rho = np.where(middle > 0, deviation.max(-1) / np.where(middle > 0, middle, 1), np.nan)
  return rho / np.sqrt(deviation.shape[-1])


def find_loud(moments: Moments, factor: float = 50.0) -> Bool[np.ndarray, 'positions L D']:
  """Marks the coordinates whose mean is larger than `factor` times the median absolute mean of its position and layer.

  Raises:
    SteeringError: a factor of 1 or less, by which half of all coordinates would be loud.
  """
  if not factor > 1:
    raise SteeringError(f'factor={factor!r} should be a number over 1', hint='50 is the default')
  size = np.abs(moments.mean)
  return size > factor * np.median(size, -1, keepdims=True)


def mask_loud(
  directions: Float64[np.ndarray, 'positions L D'], negative: Moments, factor: float = 50.0
) -> Float64[np.ndarray, 'positions L D']:
  """Candidates with 0 at loud coordinates; arguments as in `find_loud`."""
  return np.where(find_loud(negative, factor), 0.0, directions)


def divide_by_variance(
  directions: Float64[np.ndarray, 'positions L D'], negative: Moments
) -> Float64[np.ndarray, 'positions L D']:
  """Candidates divided by the variances of the negative prompts, coordinate by coordinate, at their old lengths.

  This is the direction of a linear discriminant whose covariance is diagonal.

  Raises:
    SteeringError: a coordinate that does not vary among the negative prompts, but differs from the positive ones.
  """
  constant = negative.variance == 0
  bad = np.argwhere(constant & (directions != 0))
  if len(bad):
    i, layer, channel = bad[0]
    raise SteeringError(
      f'coordinate {channel} does not vary among the {negative.count} negative prompts: its variance is 0',
      where=f'position {i} of those requested, before layer {layer}',
      cause='too few prompts, or a token that all of them share',
      hint='pass more prompts, or adjust=mask_loud',
    )
  divided = directions / np.where(constant, 1.0, negative.variance)
  old, new = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (directions, divided))
  return divided * (old / np.where(new > 0, new, 1.0))
