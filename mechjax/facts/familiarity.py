"""Known against unknown names: whether a number, such as the length of an MLP's output, tells them apart.

If early MLPs look names up, they may write more at names that they know. The comparison is between the listed names and
the other pairs of the same first names and surnames, so that it is about pairs and not about tokens (Nanda et al. 2023,
Fact Finding, post 3: larger for known names from MLP 1 on in Pythia 2.8B).

    read = make_row_reader(model.apply, 'mlp_out')                               of `reads`
    length = lambda pairs: np.linalg.norm(read(params, names.rows(pairs))['mlp_out'], axis=-1)      [names, L]
    found = compare_groups(length(names.pairs), length(names.unlisted))
    found.ratio, found.auc, found.standard_error             [L] each

AUC is the probability that a known name has the larger number, ties counted half; its standard error is that of DeLong
et al. 1988. The control permutes the labels.

Sharp edge: other pairs share tokens with each other, so that they are not independent, and the error of a comparison
with all of them is too small. For an error that can be relied on, give other pairs in which every token occurs once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used
from jax.typing import ArrayLike
from jaxtyping import Float, Float64

from mechjax.errors import FactsError
from mechjax.facts.finite import as_table, check_count
from mechjax.host_arrays import check_seed
from mechjax.probing.scoring import auc_of_ranks, rank_blocks


@dataclasses.dataclass(frozen=True, eq=False)
class GroupComparison:
  """Numbers of known and of unknown names.

  Attributes:
    known, unknown: means of each group.
    ratio: mean of the known names over that of the unknown ones.
    auc: probability that a known name has the larger number.
    standard_error: of `auc`.
    shuffled: AUC with permuted labels, [draws, ...]: the control.
  """

  known: Float64[np.ndarray, ' ...']
  unknown: Float64[np.ndarray, ' ...']
  ratio: Float64[np.ndarray, ' ...']
  auc: Float64[np.ndarray, ' ...']
  standard_error: Float64[np.ndarray, ' ...']
  shuffled: Float64[np.ndarray, 'draws ...']


def compare_groups(
  known: Float[ArrayLike, 'known ...'],
  unknown: Float[ArrayLike, 'unknown ...'],
  n_shuffles: int = 100,
  seed: int = 0,
) -> GroupComparison:
  """Compares a number between two groups of names.

  Args:
    known: one number for each known name, and any further axes, such as layers.
    unknown: the same of unknown names.
    n_shuffles: number of permutations of the labels.
    seed: seed of the permutations.

  Raises:
    FactsError: fewer than two names in a group, other axes, or NaN.
  """
  check_count('n_shuffles', n_shuffles, 1)
  groups = [as_table(n, x, 'names ...') for n, x in (('known', known), ('unknown', unknown))]
  if groups[0].shape[1:] != groups[1].shape[1:] or min(map(len, groups)) < 2:
    raise FactsError(
      f'known {list(groups[0].shape)} and unknown {list(groups[1].shape)} cannot be compared',
      hint='[names, ...] with the same further axes, and at least two names of each group',
    )
  mean, other = (np.asarray(x.mean(0)) for x in groups)
  together, n = np.concatenate(groups), len(groups[0])
  random = np.random.default_rng(check_seed(seed, FactsError))
  orders = [random.permutation(len(together)) for _ in range(n_shuffles)]
  members = np.stack([np.arange(len(together)), *map(np.argsort, orders)]) < n
  blocks = rank_blocks(together.reshape(len(together), -1))
  auc = np.concatenate([auc_of_ranks(ranks, members) for ranks in blocks], -1)
  auc = auc.reshape(len(auc), *mean.shape)
  ratio = np.divide(mean, other, out=np.full(mean.shape, np.nan), where=other != 0)
  return GroupComparison(mean, other, ratio, np.asarray(auc[0]), _error_of_auc(*groups), auc[1:])


def _error_of_auc(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
  """Standard error of the AUC (DeLong et al. 1988)."""
  m, n = len(known), len(unknown)
  rank = lambda x: scipy.stats.rankdata(x, axis=0)  # noqa: E731
  together = rank(np.concatenate([known, unknown]))
  above = (together[:m] - rank(known)) / n  # share of unknown names below each known one
  below = (together[m:] - rank(unknown)) / m  # share of known names below each unknown one
  return np.asarray(np.sqrt(above.var(0, ddof=1) / m + below.var(0, ddof=1) / n))
