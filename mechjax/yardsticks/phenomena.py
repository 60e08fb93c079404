"""Two ways in which a dictionary misses a variable that is there: occlusion and over-splitting.

OCCLUSION: a variable with large codes hides a smaller one that matters as much, because the loss of a dictionary counts
squares. OVER-SPLITTING: a variable with two values becomes many latents, each active on some prompts of one value
(Makelov et al. 2024, arXiv 2405.08366, section 5).

    for row in report_occlusion(codes, acts, scores):
      row.feature, row.variance, row.best_f1, row.interpretable, row.hidden_by
    parts = count_parts(latents > 0, pos == 1)
    parts.n, parts.covered                     latents that together are active on the prompts, and their share

An attribute counts as hidden if it has no interpretable latent and another one with a larger share of the variance has
one. This states which attribute the dictionary found, not why; whether the hidden one matters is the edit's accuracy.

`count_parts` takes latents with a precision of at least `min_precision`, and adds the one that is active on most of the
prompts that are not covered yet, until a share of them is covered. One latent is a variable that is not split.

Letters: B prompts, M latents.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Bool

from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import Matrix, as_mask, check_rows, check_share
from mechjax.yardsticks.predicates import Active, DetectorScores
from mechjax.yardsticks.supervised import SupervisedCodes


@dataclasses.dataclass(frozen=True)
class Occlusion:
  """One feature of the supervised codes, and how well a dictionary shows it.

  Attributes:
    feature: names of its attributes.
    variance: mean squared length of its codes, as a share of the variance of the activations.
    best_f1: largest F1 of a latent, mean over the values of the feature.
    interpretable: number of latents with an F1 of at least the threshold for one of its values, as in
      `DetectorScores.is_interpretable`: a value that a latent that is always active would detect does not count.
    hidden_by: features with a larger variance that have interpretable latents, if this one has none.
  """

  feature: tuple[str, ...]
  variance: float
  best_f1: float
  interpretable: int
  hidden_by: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Parts:
  """Latents that together detect a predicate.

  Attributes:
    latents: the latents, in the order in which they were added.
    covered: share of the prompts of the predicate on which one of them is active.
  """

  latents: tuple[int, ...]
  covered: float

  @property
  def n(self) -> int:
    """Number of latents."""
    return len(self.latents)


def report_occlusion(
  codes: SupervisedCodes,
  acts: Matrix,
  scores: DetectorScores,
  threshold: float = 0.8,
) -> list[Occlusion]:
  """Compares the size of the codes of each feature with the latents that detect it, the largest first.

  Args:
    codes: supervised codes of the activations.
    acts: the activations.
    scores: scores of the latents, for predicates of every feature of the codes.
    threshold: F1 of an interpretable latent.

  Raises:
    YardstickError: a feature without predicates, or as for `variance_shares`.
  """
  least = check_share('threshold', threshold)
  found = []
  for feature, variance in codes.variance_shares(acts).items():
    about = scores.predicates.of_feature(*feature)
    f1, informative = scores.f1[about], scores.always[about] < least
    n = int((f1[informative] >= least).any(0).sum())
    found.append(Occlusion(feature, variance, float(f1.max(1).mean()), n, ()))
  found.sort(key=lambda row: -row.variance)
  seen: list[tuple[str, ...]] = []
  for i, row in enumerate(found):
    if row.interpretable:
      seen.append(row.feature)
    else:
      found[i] = dataclasses.replace(row, hidden_by=tuple(seen))
  return found


def count_parts(
  active: Active,
  members: Bool[np.ndarray | Array, ' B'],
  *,
  min_precision: float = 0.9,
  coverage: float = 0.9,
) -> Parts:
  """Finds few latents that together are active on the prompts of a predicate, and hardly on others.

  Args:
    active: whether each latent is active [B, M].
    members: whether the predicate is true of each prompt [B].
    min_precision: least share of the prompts of a latent that have to be members.
    coverage: share of the members that is enough.

  Raises:
    YardstickError: not masks, of different numbers of prompts, no members; shares that are not above 0 and at most 1.
  """
  mask, inside = as_mask('active', active, 2), as_mask('members', members, 1)
  check_rows('members', len(inside), len(mask))
  if not inside.any():
    raise YardstickError('the predicate is true of no prompt: there is nothing to cover')
  least, enough = check_share('min_precision', min_precision), check_share('coverage', coverage)
  hits, n = mask[inside].sum(0), mask.sum(0)
  allowed = (n > 0) & (hits >= least * n)
  own, left = mask[inside], np.ones(int(inside.sum()), bool)
  chosen: list[int] = []
  while (~left).mean() < enough:
    gain = np.where(allowed, own[left].sum(0), 0)
    best = int(gain.argmax())
    if not gain[best]:
      break
    chosen.append(best)
    left &= ~own[:, best]
  return Parts(tuple(chosen), float((~left).mean()))
