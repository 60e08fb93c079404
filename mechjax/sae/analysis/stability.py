"""Stability over seeds: the share of the latents that another seed finds too.

Two dictionaries of one shape that were trained on the same data from different seeds do not contain the same features.
A latent counts as SHARED if the best assignment of decoder rows and the best assignment of encoder columns give it the
same partner, and its cosine to that partner is above 0.7 in both (Paulo and Belrose 2025, arXiv 2501.16615).

    stability = measure_stability(params_of_seed_0, params_of_seed_1)
    stability.share, stability.share_above([0.5, 0.7, 0.9]), stability.share_of(alive)
    print(measure_seed_stability([seed_0, seed_1, seed_2]))            all pairs, with a standard error over seeds

The members of an ensemble with several seeds are such dictionaries:
`[jax.tree.map(lambda x: x[n], params) for n in range(members)]`.

Sharp edges: cosines do not depend on units, so nothing is folded. Chance is not zero if D is small and M is large: the
level is that of two untrained dictionaries, `measure_stability(sae.init(key_0), sae.init(key_1))`. Dead latents keep
their initial directions and are never shared; report the share with and without them. Pairs of seeds share seeds, so
the standard error leaves out one seed at a time (jackknife), and two seeds have none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mechjax.sae.analysis.checks import (
  check_dictionary,
  check_mask,
  check_number,
  check_same_shape,
  check_several,
  unit_rows,
)
from mechjax.sae.analysis.matching import assign, multiply_rows

MIN_COSINE = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Stability:
  """Latents of a dictionary a that a dictionary b has too; entries are in the order of a.

  Attributes:
    partner: best partner by decoder rows, int64 [M].
    encoder_partner: best partner by encoder columns, int64 [M].
    decoder: cosine of the decoder rows of a latent and its partner, [M].
    encoder: cosine of their encoder columns, [M].
    min_cosine: the cosine that a shared latent exceeds in both.
  """

  partner: Int64[np.ndarray, ' M']
  encoder_partner: Int64[np.ndarray, ' M']
  decoder: Float64[np.ndarray, ' M']
  encoder: Float64[np.ndarray, ' M']
  min_cosine: float

  @property
  def agree(self) -> Bool[np.ndarray, ' M']:
    """Whether both assignments give a latent the same partner."""
    return self.partner == self.encoder_partner

  @property
  def shared(self) -> Bool[np.ndarray, ' M']:
    """Whether the assignments agree and both cosines exceed the minimum."""
    return self._find_shared(self.min_cosine)

  @property
  def share(self) -> float:
    """Share of the latents that are shared."""
    return float(self.shared.mean())

  def share_of(self, mask: Bool[np.ndarray, ' M']) -> float:
    """Share among some latents of a, such as those that are not dead; NaN for an empty mask.

    Raises:
      SAEError: not a boolean for each latent.
    """
    chosen = check_mask('mask', mask, self.partner.shape)
    return float(self.shared[chosen].mean()) if chosen.any() else np.nan

  def share_above(self, cosines: Sequence[float]) -> Float64[np.ndarray, ' n']:
    """The share, for other minimum cosines."""
    return np.array(
      [self._find_shared(check_number('cosines', c, -1.0, 1.0)).mean() for c in cosines], np.float64
    )

  def _find_shared(self, cosine: float) -> Bool[np.ndarray, ' M']:
    return self.agree & (np.minimum(self.decoder, self.encoder) > cosine)

  def __str__(self) -> str:
    return (
      f'{self.share:.3f} of {len(self.partner)} latents are shared (both assignments agree, cosines above '
      f'{self.min_cosine}); assignments agree for {self.agree.mean():.3f}; median cosine of decoder rows '
      f'{np.median(self.decoder):.3f}, of encoder columns {np.median(self.encoder):.3f}'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SeedStability:
  """Shared latents of all pairs of seeds.

  Attributes:
    shares: share of shared latents of each pair, symmetric, with 1 on the diagonal, [seeds, seeds].
    found: number of other seeds that have each latent too, int64 [seeds, M].
    min_cosine: the cosine that a shared latent exceeds.
  """

  shares: Float64[np.ndarray, 'seeds seeds']
  found: Int64[np.ndarray, 'seeds M']
  min_cosine: float

  @property
  def mean(self) -> float:
    """Mean share over pairs of seeds."""
    return _mean_of_pairs(self.shares)

  @property
  def standard_error(self) -> float:
    """Jackknife over seeds; NaN with two seeds."""
    n = len(self.shares)
    if n < 3:
      return np.nan
    without = [_mean_of_pairs(np.delete(np.delete(self.shares, i, 0), i, 1)) for i in range(n)]
    return float(np.sqrt((n - 1) * np.var(without)))

  @property
  def in_all(self) -> float:
    """Share of the latents that all other seeds have too, mean over seeds."""
    return float((self.found == len(self.shares) - 1).mean())

  def __str__(self) -> str:
    error = '' if np.isnan(self.standard_error) else f' ± {self.standard_error:.3f}'
    return (
      f'{len(self.shares)} seeds of {self.found.shape[1]} latents: {self.mean:.3f}{error} shared between two '
      f'seeds (cosines above {self.min_cosine}), {self.in_all:.3f} found by all'
    )


def measure_stability(
  a: Mapping[str, Any], b: Mapping[str, Any], min_cosine: float = MIN_COSINE
) -> Stability:
  """Compares two dictionaries of one shape.

  Args:
    a, b: parameters with W_enc [D, M] and W_dec [M, E].
    min_cosine: cosine that a shared latent exceeds in encoder and decoder.

  Raises:
    SAEError: dictionaries of two shapes, parameters that are not finite, latents without a direction, or a minimum
      that is not a cosine.
  """
  check_number('min_cosine', min_cosine, -1.0, 1.0)
  first, second = check_dictionary('a', a), check_dictionary('b', b)
  check_same_shape(a, b)
  cosines = [multiply_rows(unit_rows(x), unit_rows(y)) for x, y in zip(first, second)]
  encoder_partner, partner = map(assign, cosines)
  rows = np.arange(len(partner))
  return Stability(
    partner,
    encoder_partner,
    cosines[1][rows, partner],
    cosines[0][rows, partner],
    float(min_cosine),
  )


def measure_seed_stability(
  members: Sequence[Mapping[str, Any]], min_cosine: float = MIN_COSINE
) -> SeedStability:
  """Compares all pairs of dictionaries that differ in their seeds.

  Args:
    members: parameters of two dictionaries or more, of one shape.
    min_cosine: cosine that a shared latent exceeds in encoder and decoder.

  Raises:
    SAEError: fewer than two dictionaries; otherwise as `measure_stability`.
  """
  own = check_several('members', members, 2)
  rows = [check_dictionary(f'member {n}', params)[1] for n, params in enumerate(own)]
  for params in own[1:]:
    check_same_shape(own[0], params)
  shares, found = np.eye(len(own)), np.zeros((len(own), len(rows[0])), np.int64)
  for i, j in itertools.combinations(range(len(own)), 2):
    pair = measure_stability(own[i], own[j], min_cosine)
    shares[i, j] = shares[j, i] = pair.share
    found[i] += pair.shared
    found[j, pair.partner[pair.shared]] += 1
  return SeedStability(shares, found, float(min_cosine))


def _mean_of_pairs(shares: Float64[np.ndarray, 'seeds seeds']) -> float:
  return float(shares[np.triu_indices(len(shares), 1)].mean())
