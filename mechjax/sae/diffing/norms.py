"""Relative length of a latent's directions in two parts of a crosscoder.

A latent that only one of two models needs has no direction in the other. With the lengths |d^A| and |d^B|,

    difference = (|d^B| - |d^A|) / max(|d^A|, |d^B|) / 2 + 1/2

is 0 for a latent of A alone, 1 for a latent of B alone and 1/2 for equal lengths (Lindsey et al. 2024; Minder et al.
2025). A latent below 0.1 or above 0.9 counts as exclusive, one from 0.4 to 0.6 as shared.

    norms = compare_norms(sae, params)
    np.flatnonzero(norms.is_second)                       latents of B alone

Sharp edges: an L1 penalty shrinks the shorter of two directions to nothing, so an exclusive latent need not be a
feature of one model alone; `latent_scaling` decides. Lengths are compared in the units of the scaled activations:
parameters that were folded for unnormalised ones (`formats.fold`) need the same `scales`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Bool, Float64

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.architectures.crosscoder_parts import part_lengths

EXCLUSIVE, SHARED = 0.1, 0.1
"""Largest distance from 0 or 1 of an exclusive latent, and from 1/2 of a shared one."""


@dataclasses.dataclass(frozen=True)
class NormComparison:
  """Relative lengths of directions in two parts.

  Attributes:
    difference: of each latent, float64 [M]; NaN if it has no direction in either part.
  """

  difference: Float64[np.ndarray, ' M']

  @property
  def is_first(self) -> Bool[np.ndarray, ' M']:
    """Latents of the first part alone."""
    return self.difference < EXCLUSIVE

  @property
  def is_second(self) -> Bool[np.ndarray, ' M']:
    """Latents of the second part alone."""
    return self.difference > 1 - EXCLUSIVE

  @property
  def is_shared(self) -> Bool[np.ndarray, ' M']:
    """Latents of similar lengths in both parts."""
    return np.abs(self.difference - 0.5) <= SHARED

  @property
  def shares(self) -> dict[str, float]:
    """Fractions of the latents that have a direction; the rest lies between."""
    counted = max(int(np.isfinite(self.difference).sum()), 1)
    masks = {'first': self.is_first, 'shared': self.is_shared, 'second': self.is_second}
    return {name: float(mask.sum() / counted) for name, mask in masks.items()}


def norm_difference(first: ArrayLike, second: ArrayLike) -> Float64[np.ndarray, ' M']:
  """(|second| - |first|) / max / 2 + 1/2 of lengths [M]; NaN where both are 0.

  Raises:
    SAEError: other shapes, or lengths that are negative or not finite.
  """
  a, b = (np.asarray(x, np.float64) for x in (first, second))
  if a.shape != b.shape or a.ndim != 1:
    raise SAEError(f'lengths of shapes {a.shape} and {b.shape}', hint='one for each latent, [M]')
  if not (np.isfinite([a, b]).all() and (np.minimum(a, b) >= 0).all()):
    raise SAEError('lengths of directions that are negative or not finite')
  longest = np.maximum(a, b)
  with np.errstate(invalid='ignore'):
    return np.where(longest > 0, (b - a) / longest / 2 + 0.5, np.nan)


def compare_norms(
  sae: Architecture,
  params: Params,
  *,
  first: int = 0,
  second: int = 1,
  scales: Sequence[float] | None = None,
) -> NormComparison:
  """Compares the lengths of the directions in two parts of a crosscoder.

  Args:
    sae: a crosscoder.
    params: its parameters.
    first: number of a part.
    second: number of another part.
    scales: the scale of each part that `formats.fold` multiplied directions with; None for parameters as trained.

  Raises:
    SAEError: it is not a crosscoder, a part does not exist, or scales do not fit.
  """
  check_parts(sae, first, second)
  divisors = np.ones(len(sae.parts)) if scales is None else np.asarray(scales, np.float64)
  if divisors.shape != (len(sae.parts),) or not (divisors > 0).all():
    raise SAEError(f'scales={scales} for parts={sae.parts}', hint='a positive number for each part')
  lengths_PxM = np.asarray(part_lengths(params['W_dec'], sae.parts), np.float64) / divisors[:, None]
  return NormComparison(norm_difference(lengths_PxM[first], lengths_PxM[second]))


def check_parts(sae: Architecture, *parts: int) -> None:
  """Raises SAEError if it is not a crosscoder, or does not have these parts, each another one."""
  if not isinstance(sae, Architecture) or not sae.is_crosscoder:
    raise SAEError(
      f'{sae!r:.100} is not a crosscoder', hint='BatchTopK(..., parts=(d_a, d_b)), trained on both'
    )
  if len({*parts}) < len(parts) or not all(0 <= part < len(sae.parts) for part in parts):
    raise SAEError(f'the parts {parts} of a crosscoder with parts={sae.parts}, counted from 0')
