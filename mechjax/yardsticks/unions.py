"""The union of values that a latent detects best, exactly, without trying all unions.

A latent may stand for no single name but for the names of women, or for a set of names that was not expected. For a
latent that is active h_v times at the n_v prompts with value v, and c times in all, the F1 of the union U is

    F1(U) = 2 sum_{v in U} h_v / (sum_{v in U} n_v + c)

a ratio of sums, whose maximum over all unions of at most m values is found by Dinkelbach's method (1967): for the best
ratio so far, L, the best union takes the m values with the largest 2 h_v - L n_v that are positive; its ratio is the
next L, until L stays. All latents are computed at once.

    found = find_best_unions(latents > 0, names, max_values=12)
    found.f1, found.members                      [M], [M, values]

Sharp edge: the best of many unions fits the prompts at hand. A latent that is always active has a large F1 for a union
of nearly all values: limit `max_values`, compare with `always`, and score the union on other prompts.

Letters: B prompts, M latents.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import (
  Values,
  as_mask,
  as_values,
  check_same_kind,
  check_varies,
  check_whole,
)
from mechjax.yardsticks.predicates import Active


@dataclasses.dataclass(frozen=True, eq=False)
class BestUnions:
  """The union of values with the largest F1 of each latent.

  Attributes:
    values: the values of the attribute, sorted.
    members: whether each value is in the union of each latent.
    f1: F1 of that union; 0 for a latent that is never active, whose union is empty.
    always: F1 of the best union of a latent that is always active.
  """

  values: Shaped[np.ndarray, ' values']
  members: Bool[np.ndarray, 'M values']
  f1: Float64[np.ndarray, ' M']
  always: float

  def score(self, active: Active, values: Values) -> Float64[np.ndarray, ' M']:
    """F1 of the same unions at other prompts.

    Args:
      active: whether each latent is active [B, M].
      values: values of the attribute at these prompts; others than those of the search are in no union.

    Raises:
      YardstickError: another number of latents or prompts.
    """
    mask = as_mask('active', active, 2)
    labels = as_values('values', values, len(mask))
    check_same_kind('values', labels, self.values)
    if mask.shape[1] != len(self.f1):
      raise YardstickError(f'{mask.shape[1]} latents for unions of {len(self.f1)}')
    inside = (labels[:, None] == self.values) @ self.members.T.astype(np.float64)
    total = inside.sum(0) + mask.sum(0)
    return 2 * (inside * mask).sum(0) / np.maximum(total, 1)


def find_best_unions(active: Active, values: Values, max_values: int | None = None) -> BestUnions:
  """Finds the union of at most `max_values` values with the largest F1, for each latent.

  Args:
    active: whether each latent is active [B, M].
    values: value of an attribute at each prompt.
    max_values: largest number of values in a union; None for all but one, because all values together say nothing.

  Raises:
    YardstickError: not a mask; values of another length or one value alone; `max_values` below 1, or all values.
  """
  mask = as_mask('active', active, 2)
  labels = as_values('values', values, len(mask))
  check_varies('values', labels)
  levels, codes = np.unique(labels, return_inverse=True)
  m = len(levels) - 1 if max_values is None else check_whole('max_values', max_values, 1)
  if m >= len(levels):
    raise YardstickError(
      f'max_values={max_values} of {len(levels)} values',
      hint='all values together say nothing about a prompt',
    )
  one_hot = (codes[:, None] == np.arange(len(levels))).astype(np.float64)
  hits, counts = mask.T.astype(np.float64) @ one_hot, one_hot.sum(0)
  members, f1 = _maximise(hits, counts, mask.sum(0).astype(np.float64), m)
  always = _maximise(counts[None], counts, np.array([float(len(mask))]), m)[1]
  return BestUnions(levels, members, f1, float(always[0]))


def _maximise(
  hits: Float64[np.ndarray, 'M values'],
  counts: Float64[np.ndarray, ' values'],
  n_active: Float64[np.ndarray, ' M'],
  m: int,
) -> tuple[Bool[np.ndarray, 'M values'], Float64[np.ndarray, ' M']]:
  """Dinkelbach's iterations; each raises the ratio of every latent that is not at its maximum."""
  ratio, members = np.zeros(len(hits)), np.zeros(hits.shape, bool)
  while True:
    gain = 2 * hits - ratio[:, None] * counts
    rank = np.argsort(np.argsort(-gain, axis=1, kind='stable'), axis=1)
    chosen = (rank < m) & (gain > 0)
    total = (chosen * counts).sum(1) + n_active
    found = 2 * (chosen * hits).sum(1) / np.maximum(total, 1)
    better = found > ratio + 1e-12
    if not better.any():
      return members, ratio
    members[better], ratio[better] = chosen[better], found[better]
