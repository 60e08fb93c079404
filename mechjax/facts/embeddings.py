"""Geometry of token embeddings: the direction that all of them share, and offsets that stand for a relation.

Two findings about embedding matrices need a number each. In some models the embeddings of all tokens point in nearly
one direction, so that a cosine between two of them says little before their mean is subtracted (mean cosine 0.95 in
GPT-Neo, 0.3 in GPT-2). And some relations are an offset, as in word2vec: a capital is its country plus one vector
(Mikolov et al. 2013, arXiv 1301.3781).

    mean_cosine(W_E), mean_cosine(W_E - W_E.mean(0))                                   0.4, 0.0
    offset = measure_offset(W_E[countries], W_E[capitals])
    offset.explained, offset.chance                              0.2, and its value for the same tokens in another order

`explained` predicts each difference by the mean of all others, so that pairs without a common offset have -1 / (n - 1)
and not 1 / n. It is a share of the differences, and large ones count more.

Other properties of a token, such as its number of characters, are a probe: `probing.fit_ridge(W_E[train], lengths)`.

Sharp edges: an offset between two lists of tokens contains all that differs between the lists, also their frequency.
`chance` shows it, because it pairs the same tokens in another order: only what is more than that belongs to the pairs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mechjax.errors import FactsError
from mechjax.facts.finite import as_table, check_count
from mechjax.host_arrays import check_seed


@dataclasses.dataclass(frozen=True)
class CommonOffset:
  """An offset that pairs share.

  Attributes:
    explained: share of the squared differences that the mean of all other pairs predicts.
    chance: the same for the second members in random order, mean over draws.
    n: number of pairs.
  """

  explained: float
  chance: float
  n: int


def mean_cosine(rows: Float[ArrayLike, 'V D']) -> float:
  """Mean cosine over all pairs of different rows; 0 for independent directions.

  Raises:
    FactsError: fewer than two rows, NaN, or a row of zeros.
  """
  table = as_table('rows', rows, 'V D')
  n = len(table)
  if n < 2:
    raise FactsError('one row has no pair to compare', hint='an embedding matrix, [V, D]')
  lengths = np.linalg.norm(table, axis=1)
  if not lengths.all():
    raise FactsError(
      f'row {np.flatnonzero(lengths == 0)[0]} is zero and has no direction',
      cause='tokens that were never used, or padding of the vocabulary',
      hint='rows[rows.any(1)]',
    )
  total = (table / lengths[:, None]).sum(0)
  return float((total @ total - n) / (n * (n - 1)))


def measure_offset(
  sources: Float[ArrayLike, 'n D'],
  targets: Float[ArrayLike, 'n D'],
  draws: int = 100,
  seed: int = 0,
) -> CommonOffset:
  """Measures whether the second members of pairs are the first ones plus a vector.

  Args:
    sources: first members, such as the embeddings of countries.
    targets: second members, of the same pairs.
    draws: number of random orders.
    seed: seed of the orders.

  Raises:
    FactsError: other shapes, fewer than three pairs, equal members, or NaN.
  """
  a, b = as_table('sources', sources, 'pairs D'), as_table('targets', targets, 'pairs D')
  if a.shape != b.shape or len(a) < 3:
    raise FactsError(
      f'sources {list(a.shape)} and targets {list(b.shape)}; expected three pairs or more'
    )
  check_count('draws', draws, 1)
  random = np.random.default_rng(check_seed(seed, FactsError))
  chance = [_explain(b[random.permutation(len(b))] - a) for _ in range(draws)]
  return CommonOffset(_explain(b - a), float(np.mean(chance)), len(a))


def _explain(difference: Float[np.ndarray, 'n D']) -> float:
  n, square = len(difference), np.square(difference).sum()
  if not square:
    raise FactsError('sources and targets are equal, so that they have no differences')
  others = (difference.sum(0) - difference) / (n - 1)
  return 1 - float(np.square(difference - others).sum() / square)
