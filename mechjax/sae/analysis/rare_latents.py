"""The ultra-low-frequency cluster: rare latents whose encoder columns all point in one direction.

In a dictionary of a small model more than half of the latents fired on fewer than one token in ten thousand, and almost
all of these had the same encoder direction, with cosines above 0.95 to their mean, while their decoder rows differed.
The same direction formed from another seed (cosine 0.96), so that it says something about the model (Nanda 2023,
https://www.alignmentforum.org/posts/fKuugaxt2XLTkASkk).

    cluster = find_rare_latents(params, density)          density [M], such as `SiteReport.density`
    cluster.share                                         share of the rare latents with a cosine above 0.95
    cluster.compare(other)                                cosine of the directions of two seeds

The direction is the mean of the encoder columns as they are, as in the published code, so that long ones count more.

Sharp edges: latents that never fired are rare too, unless `dead=False`; their encoder columns may never have been
trained. With few latents the mean resembles each of them: `expected`, the square root of 1 / n, is the mean cosine of n
random directions of many dimensions to their mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float64, Int64

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.analysis.checks import check_dictionary, check_number, unit_rows


@dataclasses.dataclass(frozen=True, eq=False)
class RareLatents:
  """Rare latents, and the mean direction of their encoder columns.

  Attributes:
    latents: the rare latents, int64 [n].
    direction: mean of their encoder columns at length 1, [D].
    cosine: cosine of each of their encoder columns to it, [n].
    decoder_cosine: the same of their decoder rows and the mean of these, [n].
    min_cosine: cosine above which a latent belongs to the cluster.
  """

  latents: Int64[np.ndarray, ' n']
  direction: Float64[np.ndarray, ' D']
  cosine: Float64[np.ndarray, ' n']
  decoder_cosine: Float64[np.ndarray, ' n']
  min_cosine: float

  @property
  def share(self) -> float:
    """Share of the rare latents in the cluster."""
    return float((self.cosine > self.min_cosine).mean())

  @property
  def expected(self) -> float:
    """Mean cosine to their mean of as many random directions."""
    return len(self.latents) ** -0.5

  def compare(self, other: RareLatents) -> float:
    """Cosine of the mean directions of two dictionaries of one site.

    Raises:
      SAEError: dictionaries of other widths.
    """
    if len(self.direction) != len(other.direction):
      raise SAEError(f'directions of width {len(self.direction)} and {len(other.direction)}')
    return float(self.direction @ other.direction)

  def __str__(self) -> str:
    return (
      f'{len(self.latents)} rare latents: {self.share:.3f} have encoder columns with a cosine above '
      f'{self.min_cosine} to their mean; median cosine {np.median(self.cosine):.3f} (random '
      f'{self.expected:.3f}), of decoder rows {np.median(self.decoder_cosine):.3f}'
    )


def find_rare_latents(
  params: Mapping[str, Any],
  density: Float[np.ndarray | Array, ' M'],
  max_density: float = 1e-4,
  min_cosine: float = 0.95,
  dead: bool = True,
) -> RareLatents:
  """Finds rare latents and the direction of their encoder columns.

  Args:
    params: parameters with W_enc [D, M] and W_dec [M, E].
    density: fraction of the tokens on which each latent is active.
    max_density: density below which a latent is rare.
    min_cosine: cosine above which a latent belongs to the cluster.
    dead: whether latents that were never active count.

  Raises:
    SAEError: another number of densities than latents, densities outside [0, 1], fewer than two rare latents, or
      encoder columns whose mean is zero.
  """
  enc, dec = check_dictionary('the dictionary', params)
  check_number('max_density', max_density, 0.0, 1.0)
  check_number('min_cosine', min_cosine, -1.0, 1.0)
  found = as_host('density', density, SAEError)
  if found.shape != (len(enc),) or not ((found >= 0) & (found <= 1)).all():
    raise SAEError(
      f'density of shape {list(found.shape)} for {len(enc)} latents',
      cause='expected a fraction of the tokens, from 0 to 1, for each latent',
    )
  rare = np.flatnonzero((found < max_density) & ((found > 0) | dead))
  if len(rare) < 2:
    raise SAEError(
      f'{len(rare)} latents have a density below {max_density}', hint='a larger max_density'
    )
  direction, cosine = _compare_with_mean('encoder columns', enc[rare])
  _, decoder_cosine = _compare_with_mean('decoder rows', dec[rare])
  return RareLatents(rare, direction, cosine, decoder_cosine, float(min_cosine))


def _compare_with_mean(
  name: str, rows: Float[np.ndarray, 'n D']
) -> tuple[Float64[np.ndarray, ' D'], Float64[np.ndarray, ' n']]:
  mean = rows.mean(0, dtype=np.float64)
  length = np.linalg.norm(mean)
  if not length > 0:
    raise SAEError(f'the mean of the {name} of {len(rows)} rare latents is zero')
  return mean / length, unit_rows(rows) @ (mean / length)
