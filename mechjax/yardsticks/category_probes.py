"""k-sparse probes of many categories at once, and the dense probes that they should come near.

If a dictionary has found categories of words, a few of its latents tell them as well as a probe of the whole activation
does (Gurnee et al. 2023, arXiv 2305.01610; SAEBench, Karvonen et al. 2025, arXiv 2503.09532). The same few columns of
other bases are the baselines, and most results on latents alone do not survive them:

    splits = split(category, seeds=5)
    labels = one_against_rest(category)                                    bool [tasks, B]
    probe_categories(latents, labels, splits, ks=(1, 2, 5, 16))            a dictionary
    probe_categories(neurons, labels, splits, ks)                          neurons
    probe_categories(x, labels, splits, ks, basis=partial(principal_directions, n=16))
    probe_categories(relu(x @ random), labels, splits, ks)                 a random dictionary
    probe_densely(x, labels, splits), probe_densely(x, labels, splits, method='mean_difference')

Columns are ranked for each task on the training part of a split, by |mean inside - mean outside| or by |AUC - 1/2|, and
the first k of them carry a logistic probe with standardised columns. All tasks and all k of a split are one solve. The
metric is the AUC on the test part, which needs no threshold and no balance of classes.

Sharp edges: 'mean_difference' prefers columns of large scale; use 'auc' to compare bases of different scales. The
largest of thousands of latents is large by chance, which the test part corrects, and a random dictionary shows. Splits
of one set overlap: see `probing.SeedMean`.

Letters: B examples, D features, M columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float64, Int, Num

from mechjax.errors import YardstickError, unknown
from mechjax.probing import SeedMean, Split, auc, fit_logistic, fit_mean_difference
from mechjax.probing.scoring import auc_of_ranks, rank_blocks
from mechjax.probing.sparse import Basis
from mechjax.yardsticks.checks import (
  Values,
  as_mask,
  as_numbers,
  as_sizes,
  as_values,
  check_rows,
  check_varies,
)

CRITERIA = ('mean_difference', 'auc')
DENSE = ('logistic', 'mean_difference')

Columns = Num[np.ndarray | Array, 'B M']
"""Values of some columns at B examples."""

Labels = Bool[np.ndarray | Array, 'tasks B']
"""Whether each example is a member of the category of each task."""


@dataclasses.dataclass(frozen=True, eq=False)
class CategoryCurves:
  """Quality of probes of each task on the test part of each split.

  Attributes:
    ks: numbers of columns; empty for dense probes.
    columns: the columns of the largest k, the best first; no columns for dense probes.
    auc: AUC on the test part; its last axis has one entry for dense probes.
  """

  ks: tuple[int, ...]
  columns: Int[np.ndarray, 'splits tasks k']
  auc: Float64[np.ndarray, 'splits tasks ks']

  def means(self) -> list[SeedMean]:
    """Mean over tasks, then over splits, for each k.

    Raises:
      ProbingError: one split alone.
    """
    return [SeedMean.of(values) for values in self.auc.mean(1).T]

  def of_task(self, task: int) -> list[SeedMean]:
    """Mean over splits of one task, for each k; errors as for `means`."""
    return [SeedMean.of(values) for values in self.auc[:, task].T]


def one_against_rest(values: Values) -> Bool[np.ndarray, 'tasks B']:
  """A task for each category, in sorted order: its members against all other examples.

  Raises:
    YardstickError: as for an attribute, or one category alone.
  """
  found = as_values('values', values)
  check_varies('values', found)
  return np.asarray(found == np.unique(found)[:, None])


def probe_categories(
  columns: Columns,
  labels: Labels,
  splits: Sequence[Split],
  ks: Sequence[int],
  *,
  basis: Basis | None = None,
  criterion: str = 'mean_difference',
  l2: float = 1.0,
) -> CategoryCurves:
  """Fits probes on the k best columns of each task.

  Args:
    columns: values [B, M], or features [B, D] with a basis.
    labels: members of each task [tasks, B].
    splits: splits of the examples.
    ks: numbers of columns.
    basis: function of the training features to directions [M, D], along which they are read; None for columns.
    criterion: one of `CRITERIA`.
    l2: penalty of the probes, for standardised columns.

  Raises:
    YardstickError: NaN, labels of another number of examples, an unknown criterion, more columns than there are, no
      splits, or splits of other examples; a task without a member or with members only in a part of a split.
    ProbingError: as for `fit_logistic`.
  """
  x, members, parts = _check(columns, labels, splits)
  if criterion not in CRITERIA:
    raise unknown(YardstickError, 'criterion', criterion, CRITERIA)
  sizes = [*as_sizes('ks', ks)]
  found = []
  for part in parts:
    directions = None if basis is None else as_numbers('directions', basis(x[part.train]), 2)
    values = x if directions is None else x @ directions.T
    if max(sizes) > values.shape[1]:
      raise YardstickError(f'k={max(sizes)} of {values.shape[1]} columns')
    found.append(_probe(values, members, part, sizes, criterion, l2))
  chosen, scores = zip(*found)
  return CategoryCurves(tuple(sizes), np.stack(chosen), np.stack(scores))


def probe_densely(
  features: Columns,
  labels: Labels,
  splits: Sequence[Split],
  method: str = 'logistic',
  l2: float = 1.0,
) -> CategoryCurves:
  """Fits probes on all features: logistic regression, or the difference of class means.

  Args, errors: as for `probe_categories`; `method` is one of `DENSE`, and `l2` for standardised features.
  """
  x, members, parts = _check(features, labels, splits)
  if method not in DENSE:
    raise unknown(YardstickError, 'method', method, DENSE)
  found = []
  for part in parts:
    train, known = x[part.train], members[:, part.train]
    if method == 'logistic':
      scores = fit_logistic(train, known, l2, standardise=True).scores(x[part.test])
    else:
      scores = fit_mean_difference(train, known).scores(x[part.test])
    found.append(_score(scores[:, None], members[:, part.test]))
  none = np.zeros((len(parts), len(members), 0), np.int64)
  return CategoryCurves((), none, np.stack(found))


def _check(
  columns: Columns, labels: Labels, splits: Sequence[Split]
) -> tuple[Float64[np.ndarray, 'B M'], Bool[np.ndarray, 'tasks B'], list[Split]]:
  x, members = as_numbers('columns', columns, 2), as_mask('labels', labels, 2)
  check_rows('labels', members.shape[1], len(x))
  parts = [*splits]
  if not parts:
    raise YardstickError('there are no splits', hint='mechjax.probing.split(category)')
  for number, part in enumerate(parts):
    both = np.concatenate([part.train, part.test])
    if not np.array_equal(np.sort(both), np.arange(len(x))):
      raise YardstickError(
        f'split {number} is not one of {len(x)} examples into two parts',
        cause='splits of another set of examples',
      )
    for name in ('train', 'test'):
      inside = members[:, getattr(part, name)]
      bad = np.flatnonzero(~inside.any(1) | inside.all(1))
      if len(bad):
        raise YardstickError(
          f'task {bad[0]} has only one class in the {name} part of split {number}',
          cause='a rare category',
          hint='split(category) draws every category into every part; or leave the category out',
        )
  return x, members, parts


def _probe(
  values: Float64[np.ndarray, 'B M'],
  members: Bool[np.ndarray, 'tasks B'],
  part: Split,
  sizes: list[int],
  criterion: str,
  l2: float,
) -> tuple[Int[np.ndarray, 'tasks k'], Float64[np.ndarray, 'tasks ks']]:
  """Columns of the largest k of each task, and the AUC for each k."""
  train, known = values[part.train], members[:, part.train]
  quality = _rank(train, known, criterion)
  chosen = np.argsort(-quality, axis=1, kind='stable')[:, : max(sizes)]
  # A probe on fewer columns is one whose other columns are 0, so that all k are one batch.
  used = np.arange(max(sizes)) < np.array(sizes)[:, None]
  picked = train[:, chosen].transpose(1, 0, 2)[:, None]
  batch = np.where(used[None, :, None], picked, 0.0)
  silent = ~np.ptp(batch, axis=2).any(-1)
  batch[silent, 0, 0] = 1.0  # columns that never change: the probe needs one that does
  probe = fit_logistic(batch, known[:, None], l2, standardise=True)
  held_out = values[part.test][:, chosen].transpose(1, 0, 2)[:, None]
  scores = probe.scores(np.where(used[None, :, None], held_out, 0.0))
  return chosen, _score(scores, members[:, part.test])


def _rank(
  train: Float64[np.ndarray, 'B M'], known: Bool[np.ndarray, 'tasks B'], criterion: str
) -> Float64[np.ndarray, 'tasks M']:
  if criterion == 'auc':
    parts = [auc_of_ranks(ranks, known) for ranks in rank_blocks(train)]
    return np.abs(np.concatenate(parts, -1) - 0.5)
  n = known.sum(1, keepdims=True)
  inside, whole = known.astype(np.float64) @ train, train.sum(0)
  return np.abs(inside / n - (whole - inside) / (known.shape[1] - n))


def _score(
  scores: Float64[np.ndarray, 'tasks ks test classes'], true: Bool[np.ndarray, 'tasks test']
) -> Float64[np.ndarray, 'tasks ks']:
  return np.array([auc(s[..., 1].T, t)[1] for s, t in zip(scores, true)])
