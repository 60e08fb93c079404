"""Scores of probes and of single columns: AUC with midranks, accuracies, and means over splits with their errors.

    auc(neurons, sport)                    [classes, columns]: each column as a detector of each class
    accuracy(sport, predicted), balanced_accuracy(sport, predicted)
    SeedMean.of(accuracies)                mean over splits, standard error

The AUC of a column for a class is the probability that a member of the class has a larger value than another example,
where equal values count half. It needs no threshold and no scale, so that thousands of neurons can be compared; it is
computed for all columns and classes at once from ranks, as the statistic of Mann and Whitney (1947).

Sharp edges: equal values need midranks. A neuron that never fires has AUC 0.5 with them, and 0 or 1 without, if the
examples are sorted by class. An AUC below 0.5 is a detector that fires against the class. The largest of thousands of
AUCs is large by chance alone: `chance` says how large.

Letters: B examples.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used
from jaxtyping import Array, Float, Float64, Num, Shaped

from mechjax.errors import ProbingError
from mechjax.probing.checks import KINDS, Labels, as_classes, check_features, check_labels

Columns = Num[np.ndarray | Array, 'B columns']
"""Values of some columns (neurons, latents, scores) at B examples."""

BLOCK = 8192
"""Columns that are ranked at once."""


def auc(columns: Columns, labels: Labels) -> Float64[np.ndarray, 'classes columns']:
  """Area under the ROC curve of each column, for each class against all others.

  Args:
    columns: values [B, columns].
    labels: classes [B]. Of two classes, the second row is the usual AUC, and the first one minus it.

  Returns:
    [classes, columns], with the classes sorted.

  Raises:
    ProbingError: NaN or infinity; labels that are not classes, of another number than examples, or of one class only.
  """
  x = check_features(columns, 'columns')
  if x.ndim != 2 or np.ndim(labels) != 1:
    raise ProbingError(
      f'columns of shape {x.shape} with labels of shape {np.shape(labels)}; expected [B, columns] and [B]'
    )
  encoded = check_labels(labels, len(x), 1)
  members = encoded.codes == np.arange(len(encoded.classes))[:, None]
  parts = [auc_of_ranks(ranks, members) for ranks in rank_blocks(x)]
  return np.concatenate(parts, -1)


def rank_blocks(x: Float64[np.ndarray, 'B columns']) -> list[Float64[np.ndarray, 'B block']]:
  """Midranks of each column, from 1, in blocks of columns."""
  starts = range(0, x.shape[1], BLOCK)
  return [scipy.stats.rankdata(x[:, low : low + BLOCK], axis=0) for low in starts]


def auc_of_ranks(
  ranks: Float64[np.ndarray, 'B columns'], members: Shaped[np.ndarray, '*classes B']
) -> Float64[np.ndarray, '*classes columns']:
  """AUC from midranks, for each set of members, bool [..., B]."""
  n, total = members.sum(-1)[..., None], len(ranks)
  above = members.astype(np.float64) @ ranks - n * (n + 1) / 2
  return above / (n * (total - n))


def accuracy(labels: Labels, predicted: Labels) -> Float64[np.ndarray, '*problems']:
  """Share of examples that are predicted right.

  Args:
    labels: classes [..., B].
    predicted: predicted classes [..., B], of the same type.

  Raises:
    ProbingError: no examples, shapes that do not broadcast, or classes of different kinds.
  """
  true, guess = _check_pair(labels, predicted)
  return np.asarray(np.mean(true == guess, -1))


def balanced_accuracy(labels: Labels, predicted: Labels) -> Float64[np.ndarray, '*problems']:
  """Mean over classes of the share of their examples that are predicted right.

  A probe that always predicts the most frequent of C classes has 1 / C, whatever the frequencies.

  Args, errors: as for `accuracy`. Classes without an example in `labels` do not count.
  """
  true, guess = _check_pair(labels, predicted)
  members = true[..., None, :] == np.unique(true)[:, None]
  count = members.sum(-1)
  right = (members & (true == guess)[..., None, :]).sum(-1)
  recall = right / np.maximum(count, 1)
  return np.asarray(recall.sum(-1) / (count > 0).sum(-1))


@dataclasses.dataclass(frozen=True)
class SeedMean:
  """Mean of a number over splits, with two standard errors.

  Attributes:
    mean: mean over splits.
    deviation: standard deviation over splits, with n - 1.
    n: number of splits.
  """

  mean: float
  deviation: float
  n: int

  @classmethod
  def of(cls, values: Float[np.ndarray, ' splits']) -> SeedMean:
    """Mean of one number for each split.

    Raises:
      ProbingError: fewer than two splits, or NaN.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
      raise ProbingError(
        f'values of shape {found.shape}; expected a finite number for each of two splits or more'
      )
    return cls(float(found.mean()), float(found.std(ddof=1)), len(found))

  @property
  def standard_error(self) -> float:
    """Error of the mean as an estimate for this set of examples, over all splits of it: deviation / sqrt(n)."""
    return self.deviation / math.sqrt(self.n)

  def error_for_new_examples(self, train: int, test: int) -> float:
    """Error of the mean as an estimate for new examples (Nadeau and Bengio 2003, equation 8).

    Splits of one set share their examples, so that more splits do not make the error arbitrarily small:
    deviation * sqrt(1/n + test/train).

    Args:
      train, test: number of examples in each part.

    Raises:
      ProbingError: an empty part.
    """
    if not (train >= 1 and test >= 1):
      raise ProbingError(f'parts of {train} and {test} examples')
    return self.deviation * math.sqrt(1 / self.n + test / train)

  def __str__(self) -> str:
    return f'{self.mean:.3f} ± {self.standard_error:.3f}'


def _check_pair(
  labels: Labels, predicted: Labels
) -> tuple[Shaped[np.ndarray, '*problems B'], Shaped[np.ndarray, '*problems B']]:
  true, guess = as_classes('labels', labels), as_classes('predictions', predicted)
  kinds = [KINDS.get(x.dtype.kind) for x in (true, guess)]
  if kinds[0] != kinds[1] or kinds[0] is None or not true.size:
    raise ProbingError(
      f'labels of type {true.dtype} and shape {true.shape}, predictions of type {guess.dtype} and shape {guess.shape}',
      hint='classes of one type, as probe.predict returns them',
    )
  if true.shape[-1:] != guess.shape[-1:]:
    raise ProbingError(f'{true.shape[-1]} labels and {guess.shape[-1]} predictions')
  try:
    both = np.broadcast_arrays(true, guess)
  except ValueError as e:
    raise ProbingError(
      f'labels of shape {true.shape} and predictions of shape {guess.shape}'
    ) from e
  return both[0], both[1]
