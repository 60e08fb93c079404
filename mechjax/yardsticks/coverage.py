"""Coverage and reconstruction: whether a dictionary has a detector for each property, and what its precise ones say.

With thresholds that are searched, a latent can detect a property although it is a little active elsewhere too. Two
numbers of a dictionary follow (Karvonen et al. 2024, arXiv 2408.00113, equations 3 and 5, for boards of chess and
Othello; the properties here are any predicates of prompts):

    detector            latent i is above a share s of its maximum, s in 0, 0.1, ... 0.9
    coverage            mean over predicates of the best F1 of a detector
    reconstruction      a predicate is said to be true where any detector is active whose precision on other prompts is
                        at least 0.95; mean over predicates of the F1 of what is said

    measure_coverage(f, predicates).mean
    score_reconstruction(f, predicates, f_test, predicates.at(test_attributes)).mean()

Sharp edges: the best of M latents and ten thresholds is large by chance, and grows with M: compare dictionaries of one
width, and with random ones. Maxima are those of the first prompts, also for the test. A predicate without a precise
detector has a reconstruction F1 of 0.

Letters: B prompts, M latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int

from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import Matrix, as_matrix, check_share
from mechjax.yardsticks.predicates import Predicates, score_f1

SHARES = tuple(n / 10 for n in range(10))
"""Thresholds of detectors, in maxima of their latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Coverage:
  """The best detector of each predicate.

  Attributes:
    predicates: the predicates.
    f1: its F1.
    latent: its latent.
    share: its threshold, as a share of the latent's maximum.
  """

  predicates: Predicates
  f1: Float64[np.ndarray, ' predicates']
  latent: Int[np.ndarray, ' predicates']
  share: Float64[np.ndarray, ' predicates']

  @property
  def mean(self) -> float:
    """Mean of the best F1 over predicates."""
    return float(self.f1.mean())


def measure_coverage(latents: Matrix, predicates: Predicates) -> Coverage:
  """Finds the best detector of each predicate.

  Args:
    latents: activations [B, M], at least 0.
    predicates: statements about the same prompts.

  Raises:
    YardstickError: another number of prompts, NaN, or a negative activation.
  """
  f = _as_latents('latents', latents, predicates)
  n = len(predicates)
  f1, latent, share = np.full(n, -1.0), np.zeros(n, np.int64), np.zeros(n)
  for s, active in _detect(f, f.max(0)):
    scores = score_f1(active, predicates).f1
    best, found = scores.argmax(1), scores.max(1)
    better = found > f1
    f1, latent = np.where(better, found, f1), np.where(better, best, latent)
    share = np.where(better, s, share)
  return Coverage(predicates, f1, latent, share)


def score_reconstruction(
  latents: Matrix,
  predicates: Predicates,
  test_latents: Matrix,
  test_predicates: Predicates,
  min_precision: float = 0.95,
) -> Float64[np.ndarray, ' predicates']:
  """F1 of each predicate on test prompts, said by all detectors that are precise on other prompts.

  Args:
    latents: activations [B, M] that choose the detectors, at least 0.
    predicates: statements about these prompts.
    test_latents: activations at the test prompts.
    test_predicates: the same statements about these.
    min_precision: least precision of a detector.

  Raises:
    YardstickError: as for `measure_coverage`; other predicates or another number of latents in the test.
  """
  predicates.check_same(test_predicates)
  least = check_share('min_precision', min_precision)
  f, g = (
    _as_latents('latents', latents, predicates),
    _as_latents('test_latents', test_latents, test_predicates),
  )
  if f.shape[1] != g.shape[1]:
    raise YardstickError(
      f'{f.shape[1]} latents, and {g.shape[1]} in the test', cause='the latents of two dictionaries'
    )
  said = np.zeros_like(test_predicates.true)
  top = f.max(0)
  for (_, active), (_, there) in zip(_detect(f, top), _detect(g, top)):
    precise = score_f1(active, predicates).precision >= least
    said |= precise.astype(np.float64) @ there.T > 0
  true = test_predicates.true
  return 2 * (said & true).sum(1) / np.maximum(said.sum(1) + true.sum(1), 1)


def _as_latents(name: str, latents: Matrix, predicates: Predicates) -> Float64[np.ndarray, 'B M']:
  f = as_matrix(name, latents, predicates.true.shape[1])
  if (f < 0).any():
    raise YardstickError(
      f'{name} has a negative activation, {f.min():.3g}', cause='pre-activations, or neurons'
    )
  return f


def _detect(
  f: Float64[np.ndarray, 'B M'], top: Float64[np.ndarray, ' M']
) -> Iterator[tuple[float, Bool[np.ndarray, 'B M']]]:
  """Each threshold, and the detectors that are active with it."""
  for share in SHARES:
    yield share, f > share * top
