"""k-sparse probes: how well a class can be read from the k best columns alone.

If a dictionary has a latent for a class, one column is enough; if the class is spread over a basis, many are needed
(Gurnee et al. 2023, arXiv 2305.01610). The curve over k compares bases, and the call is the same for all of them:

    splits = split(sport)
    fit_sparse_curve(latents, sport, splits, ks)                      latents of a dictionary, [B, M]
    fit_sparse_curve(neurons, sport, splits, ks)                      neurons, [B, F]
    fit_sparse_curve(stream, sport, splits, ks, basis=partial(principal_directions, n=50))
    fit_sparse_curve(stream, sport, splits, ks, basis=partial(random_directions, n=50))

Columns are ranked and directions are made on the training part of each split; the test part is read once, by the
finished probe. A column is ranked by its largest value over classes of

    mean_difference   |mean over the class - mean over the others|
    auc               |AUC - 1/2|, which no scale of a column changes

and the probe on the first k columns is logistic. All k of a split are one solve.

Sharp edges: `mean_difference` prefers columns of large scale, as a residual stream has them; use 'auc' there. Columns
are ranked one by one, so that two copies of one column are both chosen. Of equal columns the first is taken.

Letters: B examples, D features; columns are features, or coordinates along directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from mechjax.errors import ProbingError, unknown
from mechjax.probing.checks import (
  EncodedLabels,
  Features,
  Labels,
  check_count,
  check_features,
  check_labels,
  check_width,
)
from mechjax.probing.logistic import LogisticProbe, fit_logistic
from mechjax.probing.scoring import SeedMean, accuracy, auc, balanced_accuracy
from mechjax.probing.splits import Split

Basis = Callable[[Float64[np.ndarray, 'B D']], Float64[np.ndarray, 'columns D']]
"""Training features -> directions; see `directions`."""


@dataclasses.dataclass(frozen=True, eq=False)
class SparseProbe:
  """A logistic probe on a few columns.

  Attributes:
    columns: numbers of the columns, the best first.
    directions: direction of each of these columns, or None if columns are features.
    width: number of features, D.
    probe: the probe of these columns.
  """

  columns: Int[np.ndarray, ' k']
  directions: Float64[np.ndarray, 'k D'] | None
  width: int
  probe: LogisticProbe

  def read(self, features: Features) -> Float64[np.ndarray, '*problems B k']:
    """Values of the columns; raises ProbingError for NaN or another width."""
    x = check_features(features)
    check_width(x, self.width)
    return x[..., self.columns] if self.directions is None else x @ self.directions.T

  def scores(self, features: Features) -> Float64[np.ndarray, '*problems B classes']:
    """Scores of each class from raw features."""
    return self.probe.scores(self.read(features))

  def predict(self, features: Features) -> Shaped[np.ndarray, '*problems B']:
    """The class with the largest score of each example."""
    return self.probe.predict(self.read(features))


@dataclasses.dataclass(frozen=True, eq=False)
class SparseCurve:
  """Quality of k-sparse probes on the test part of each split.

  Attributes:
    ks: numbers of columns.
    columns: the columns of the largest k in each split, the best first.
    accuracy: share of test examples that are predicted right.
    balanced_accuracy: mean over classes of that share.
    auc: mean over classes of the AUC of the score of the class.
  """

  ks: tuple[int, ...]
  columns: Int[np.ndarray, 'splits k']
  accuracy: Float64[np.ndarray, 'splits ks']
  balanced_accuracy: Float64[np.ndarray, 'splits ks']
  auc: Float64[np.ndarray, 'splits ks']

  def means(self, metric: str = 'balanced_accuracy') -> list[SeedMean]:
    """Mean over splits of a metric ('accuracy', 'balanced_accuracy', 'auc') for each k.

    Raises:
      ProbingError: an unknown metric, or one split alone.
    """
    names = ('accuracy', 'balanced_accuracy', 'auc')
    if metric not in names:
      raise unknown(ProbingError, 'metric', metric, names)
    return [SeedMean.of(values) for values in getattr(self, metric).T]


def fit_sparse(
  features: Features,
  labels: Labels,
  k: int,
  *,
  basis: Basis | None = None,
  criterion: str = 'mean_difference',
  l2: float = 1.0,
  standardise: bool = True,
) -> SparseProbe:
  """Fits a probe on the k best columns of training features.

  Args:
    features: training features [B, D].
    labels: classes [B].
    k: number of columns.
    basis: function of the training features to directions [columns, D]; None if columns are features.
    criterion: one of `CRITERIA`.
    l2, standardise: as for `fit_logistic`; columns are standardised, since they have different scales.

  Raises:
    ProbingError: as `fit_logistic`; more columns than there are; an unknown criterion; a basis of another width.
  """
  x, encoded = _check_examples(features, labels)
  directions, values = _project(x, basis)
  chosen = _rank(values, encoded, criterion, k)
  probe = fit_logistic(
    values[:, chosen], encoded.classes[encoded.codes], l2, standardise=standardise
  )
  kept = None if directions is None else directions[chosen]
  return SparseProbe(chosen, kept, x.shape[1], probe)


def fit_sparse_curve(
  features: Features,
  labels: Labels,
  splits: Sequence[Split],
  ks: Sequence[int],
  *,
  basis: Basis | None = None,
  criterion: str = 'mean_difference',
  l2: float = 1.0,
  standardise: bool = True,
) -> SparseCurve:
  """Fits k-sparse probes on the training part of each split, and scores them on its test part.

  Args:
    features: features [B, D].
    labels: classes [B].
    splits: of these examples, from `split`.
    ks: numbers of columns.
    basis, criterion, l2, standardise: as for `fit_sparse`.

  Raises:
    ProbingError: as `fit_sparse`; no splits or ks; splits of other examples, or whose test part lacks a class.
  """
  x, encoded = _check_examples(features, labels)
  parts, sizes = _as_splits(splits), _as_sizes(ks)
  _check_splits(parts, encoded)
  found = [
    _score_split(x, encoded, s, sizes, basis, criterion, l2=l2, standardise=standardise)
    for s in parts
  ]
  return SparseCurve(tuple(sizes), *(np.stack(part) for part in zip(*found)))


def _score_split(
  x: Float64[np.ndarray, 'B D'],
  encoded: EncodedLabels,
  part: Split,
  sizes: list[int],
  basis: Basis | None,
  criterion: str,
  *,
  l2: float,
  standardise: bool,
) -> tuple[np.ndarray, ...]:
  """Columns of the largest k, and the three metrics of each k."""
  train, test = x[part.train], x[part.test]
  known = dataclasses.replace(encoded, codes=encoded.codes[part.train])
  directions, values = _project(train, basis)
  held_out = test if directions is None else test @ directions.T
  chosen = _rank(values, known, criterion, max(sizes))
  # A probe on fewer columns is one whose other columns are 0, so that all k are one batch.
  used = np.arange(len(chosen)) < np.array(sizes)[:, None]
  probe = fit_logistic(
    np.where(used[:, None], values[:, chosen], 0.0), known.codes, l2, standardise=standardise
  )
  scores, true = probe.scores(held_out[:, chosen]), encoded.codes[part.test]
  guess = scores.argmax(-1)
  areas = np.array([np.diagonal(auc(some, true)).mean() for some in scores])
  return chosen, accuracy(true, guess), balanced_accuracy(true, guess), areas


def _check_examples(
  features: Features, labels: Labels
) -> tuple[Float64[np.ndarray, 'B D'], EncodedLabels]:
  x = check_features(features)
  encoded = check_labels(labels, x.shape[-2])
  if x.ndim != 2 or encoded.codes.ndim != 1:
    raise ProbingError(
      f'features of shape {x.shape} with labels of shape {encoded.codes.shape}; expected [B, D] and [B]'
    )
  return x, encoded


def _as_splits(splits: Sequence[Split]) -> list[Split]:
  parts = [*splits] if isinstance(splits, Iterable) else [splits]
  if not parts or not all(isinstance(part, Split) for part in parts):
    raise ProbingError(
      f'splits={splits!r:.100}: nothing to fit', hint='split(labels), or a list of Split'
    )
  return parts


def _as_sizes(ks: Sequence[int]) -> list[int]:
  if np.ndim(ks) != 1 or not len(ks):
    raise ProbingError(f'ks={ks!r:.100}: nothing to fit', hint='a list of numbers of columns')
  return [check_count('k', k, 1) for k in ks]


def _check_splits(splits: Sequence[Split], encoded: EncodedLabels) -> None:
  n, n_classes = len(encoded.codes), len(encoded.classes)
  for number, part in enumerate(splits):
    both = np.concatenate([part.train, part.test])
    if len({*both.tolist()}) < len(both) or both.min() < 0 or both.max() >= n:
      raise ProbingError(
        f'split {number} is not one of {n} examples into two parts',
        cause='splits of another set of examples',
        hint='split(labels)',
      )
    for name in ('train', 'test'):
      missing = n_classes - len(np.unique(encoded.codes[getattr(part, name)]))
      if missing:
        raise ProbingError(
          f'the {name} part of split {number} lacks {missing} classes', hint='split(labels)'
        )


def _project(
  x: Float64[np.ndarray, 'B D'], basis: Basis | None
) -> tuple[Float64[np.ndarray, 'columns D'] | None, Float64[np.ndarray, 'B columns']]:
  """Directions of the columns, and their values."""
  if basis is None:
    return None, x
  if not callable(basis):
    raise ProbingError(
      f'basis={basis!r:.100} is not a function of the training features',
      hint='lambda features: directions, for directions [columns, D] that are known already',
    )
  directions = check_features(basis(x), 'directions')
  check_width(directions, x.shape[1], 'directions')
  return directions, x @ directions.T


def _rank(
  columns: Float64[np.ndarray, 'B columns'], encoded: EncodedLabels, criterion: str, k: int
) -> Int[np.ndarray, ' k']:
  """The k best columns by a criterion, the best first."""
  if criterion not in CRITERIA:
    raise unknown(ProbingError, 'criterion', criterion, CRITERIA)
  if check_count('k', k, 1) > columns.shape[1]:
    raise ProbingError(f'k={k} of {columns.shape[1]} columns', hint='a smaller k')
  members = encoded.codes == np.arange(len(encoded.classes))[:, None]
  quality = CRITERIA[criterion](columns, members, encoded)
  return np.argsort(-quality, kind='stable')[:k]


def _mean_difference(
  columns: Float64[np.ndarray, 'B columns'],
  members: Bool[np.ndarray, 'classes B'],
  encoded: EncodedLabels,
) -> Float64[np.ndarray, ' columns']:
  n = members.sum(1, keepdims=True)
  inside = members.astype(np.float64) @ columns
  outside = (~members).astype(np.float64) @ columns
  return np.abs(inside / n - outside / (members.shape[1] - n)).max(0)


def _auc(
  columns: Float64[np.ndarray, 'B columns'],
  members: Bool[np.ndarray, 'classes B'],
  encoded: EncodedLabels,
) -> Float64[np.ndarray, ' columns']:
  return np.abs(auc(columns, encoded.codes) - 0.5).max(0)


CRITERIA: dict[str, Callable[..., Float64[np.ndarray, ' columns']]] = {
  'mean_difference': _mean_difference,
  'auc': _auc,
}
"""Criteria by which columns are ranked."""
