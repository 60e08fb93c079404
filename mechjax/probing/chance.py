"""The largest AUC that many columns reach by chance: the null distribution of a maximum.

The best of 55,000 neurons separates any 61 names well, whichever way these are labelled: with shuffled labels the
largest AUC has a median of about 0.82. So an AUC that was found by a search is compared with the largest one of the
same search on shuffled labels, of the same columns and examples:

    found = auc(neurons, sport)
    null = shuffle_maximum(neurons, sport, shuffles=200)
    null.median, null.quantile(0.95)               of the largest AUC over columns and classes
    null.p_value(found.max())                      share of shuffles that reach it

The ranks of the columns do not change with the labels, so that all shuffles of a block of columns are one product.

Sharp edges: a shuffle keeps the number of members of each class. `p_value` is at least 1 / (shuffles + 1) (Phipson and
Smyth 2010). Shuffled labels are exchangeable examples: with several prompts of one name, shuffle names by `groups`.

Letters: B examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64

from mechjax.errors import ProbingError
from mechjax.host_arrays import check_seed
from mechjax.probing.checks import Labels, as_number, check_count, check_features, check_share
from mechjax.probing.scoring import Columns, auc_of_ranks, rank_blocks
from mechjax.probing.splits import Groups, find_units

BLOCK_NUMBERS = 2**24
"""AUCs that are computed at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class NullMaximum:
  """Largest AUCs of shuffled labels.

  Attributes:
    maxima: largest AUC over columns, for each shuffle and class.
    two_sided: whether 1 - AUC counted as well.
  """

  maxima: Float64[np.ndarray, 'shuffles classes']
  two_sided: bool

  @property
  def over_classes(self) -> Float64[np.ndarray, ' shuffles']:
    """Largest AUC over columns and classes of each shuffle."""
    return self.maxima.max(1)

  @property
  def median(self) -> float:
    """Median over shuffles of the largest AUC over columns and classes."""
    return self.quantile(0.5)

  def quantile(self, share: float) -> float:
    """Quantile over shuffles of the largest AUC over columns and classes, interpolated."""
    return float(np.quantile(self.over_classes, check_share('share', share)))

  def p_value(self, found: float) -> float:
    """Probability of a largest AUC of at least `found` by chance: (1 + shuffles that reach it) / (1 + shuffles).

    Raises:
      ProbingError: `found` is not one number from 0 to 1.
    """
    value = as_number('found', found)
    if not 0 <= value <= 1:
      raise ProbingError(
        f'found={found!r:.100}; expected one AUC, from 0 to 1',
        cause='NaN, a percentage, or the AUCs of all columns in place of the largest',
      )
    reached = int((self.over_classes >= value).sum())
    return (1 + reached) / (1 + len(self.maxima))


def shuffle_maximum(
  columns: Columns,
  labels: Labels,
  *,
  shuffles: int = 200,
  groups: Groups | None = None,
  two_sided: bool = False,
  seed: int = 0,
) -> NullMaximum:
  """Largest AUC over columns with shuffled labels.

  Args:
    columns: values [B, columns].
    labels: classes [B].
    shuffles: number of shuffles.
    groups: group of each example, whose members keep a common label; None to shuffle examples.
    two_sided: whether a column that fires against a class counts by 1 - AUC.
    seed: the same seed gives the same shuffles.

  Raises:
    ProbingError: as `auc`; no shuffles; a group with two classes; a seed that is not a whole number from 0.
  """
  x = check_features(columns, 'columns')
  check_count('shuffles', shuffles, 1)
  check_seed(seed, ProbingError)
  units, unit = find_units(labels, groups)
  if x.ndim != 2 or len(unit) != len(x):
    raise ProbingError(f'columns of shape {x.shape} with {len(unit)} labels')
  random = np.random.default_rng(seed)
  codes = np.stack([random.permutation(units.codes) for _ in range(shuffles)])[:, unit]
  members = codes[:, None] == np.arange(len(units.classes))[:, None]
  maxima = np.max([_largest(ranks, members, two_sided) for ranks in rank_blocks(x)], axis=0)
  return NullMaximum(maxima, two_sided)


def _largest(
  ranks: Float64[np.ndarray, 'B columns'],
  members: Bool[np.ndarray, 'shuffles classes B'],
  two_sided: bool,
) -> Float64[np.ndarray, 'shuffles classes']:
  """Largest AUC of a block of columns, some shuffles at a time."""
  size = max(1, BLOCK_NUMBERS // (members.shape[1] * ranks.shape[1]))
  found = []
  for low in range(0, len(members), size):
    values = auc_of_ranks(ranks, members[low : low + size])
    largest = values.max(-1)
    found.append(np.maximum(largest, 1 - values.min(-1)) if two_sided else largest)
  return np.concatenate(found)
