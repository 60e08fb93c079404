"""Paths of latents over layers: the matchings of neighbouring layers, composed.

A latent of the first layer has one partner in the second, which has one in the third. The path is as good as its worst
step, and a feature lives as long as all steps so far are good.

    paths = follow([match(a, b), match(b, c), match(c, d)])
    paths.latents[2, i]                  the latent of layer 2 that continues latent i of layer 0
    paths.lifetimes(0.7)                 number of steps until a decoder cosine falls below 0.7, [M]
    paths.survival(0.7)                  share of the latents that live that long, by number of steps

Source: Balagansky et al. 2024, arXiv 2410.07656, on composed permutations.

Sharp edge: a composition differs from the direct matching of its ends, and its pairs are worse: errors add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from mechjax.errors import SAEError
from mechjax.sae.analysis.checks import check_number, check_several
from mechjax.sae.analysis.matching import Matching


@dataclasses.dataclass(frozen=True, eq=False)
class LatentPaths:
  """Latents that continue each other over layers.

  Attributes:
    latents: latent of each layer on the path of each latent of the first, int64 [L, M].
    encoder: cosine of the encoder columns of each step, [L - 1, M].
    decoder: cosine of the decoder rows of each step, [L - 1, M].
  """

  latents: Int64[np.ndarray, 'L M']
  encoder: Float64[np.ndarray, 'steps M']
  decoder: Float64[np.ndarray, 'steps M']

  def lifetimes(self, min_cosine: float) -> Int64[np.ndarray, ' M']:
    """Number of steps from the first layer on whose decoder cosines are all at least `min_cosine`.

    Raises:
      SAEError: not a cosine.
    """
    good = self.decoder >= check_number('min_cosine', min_cosine, -1.0, 1.0)
    return np.cumprod(good, axis=0, dtype=np.int64).sum(0)

  def survival(self, min_cosine: float) -> Float64[np.ndarray, ' L']:
    """Share of the latents of the first layer that live for at least 0, 1, ... L - 1 steps."""
    lives = self.lifetimes(min_cosine)
    return np.array([(lives >= n).mean() for n in range(len(self.latents))])

  def __str__(self) -> str:
    shares = [self.survival(c) for c in (0.5, 0.7, 0.9)]
    rows = [
      f'{n:5} {" ".join(f"{share[n]:9.3f}" for share in shares)}' for n in range(len(shares[0]))
    ]
    head = f'{self.latents.shape[1]} latents of layer 0; share that lives with decoder cosines of at least'
    return '\n'.join([head, 'steps       0.5       0.7       0.9', *rows])


def follow(matchings: Sequence[Matching]) -> LatentPaths:
  """Composes the matchings of neighbouring layers.

  Args:
    matchings: from layer 0 to 1, from 1 to 2, and so on.

  Raises:
    SAEError: no matchings, matchings of different numbers of latents, or compositions, which have no cosines.
  """
  steps = check_several('matchings', matchings, 1)
  if len({len(step) for step in steps}) > 1:
    raise SAEError(f'matchings of {[len(step) for step in steps]} latents have no composition')
  if not all(np.isfinite(step.decoder).all() for step in steps):
    raise SAEError(
      'a composition of matchings has no cosines', hint='give the matchings one by one'
    )
  at = [np.arange(len(steps[0]))]
  for step in steps:
    at.append(step.permutation[at[-1]])
  cosines = [
    np.stack([getattr(step, part)[here] for step, here in zip(steps, at)])
    for part in ('encoder', 'decoder')
  ]
  return LatentPaths(np.stack(at), cosines[0], cosines[1])
