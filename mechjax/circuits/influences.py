"""Influence of nodes, the fewest nodes and edges that keep most of it, and scores of a graph.

The influence of a node on the targets adds up all paths, each edge weighted by its share of the absolute values of its
row (Ameisen et al. 2025, section 3.2.5):

    Â = |A|, each row divided by its sum          influence = p^T (Â + Â² + ...)       p: weights of the targets

A feature is made of nodes below it, so the sum is computed in one pass over the rows, from the highest layer down; no
array of nodes by nodes exists, and nothing of that size is sorted: the smallest set that
holds a share of a total is found from a histogram of the bits of the numbers, of which only one bin is sorted.

Scores, as in the paper:

    completeness    share of the inputs of nodes that is not an error, weighted by their influence
    replacement     influence of the embeddings divided by that of embeddings and errors
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mechjax.errors import CircuitError


def influence(
  table: Float[np.ndarray, 'rows columns'],
  node_of_row: Int[np.ndarray, ' rows'],
  weights: Float[np.ndarray, ' rows'],
  level: Int[np.ndarray, ' rows'],
) -> Float64[np.ndarray, ' columns']:
  """Influence of every column on the targets, over all paths.

  Args:
    table: contributions to each row.
    node_of_row: the column that each row explains; -1 for a target.
    weights: importance of each row; 0 except for targets.
    level: height of each row, for example the layer of its feature; a row has no contribution from a row of its own
      level or above.

  Raises:
    CircuitError: a contribution from a row of the same level or above; NaN or infinity.
  """
  total = np.zeros(table.shape[1])
  mine = np.array(weights, np.float64)
  for rows, above in _descend(level):
    owned = node_of_row[rows] >= 0
    mine[rows[owned]] += total[node_of_row[rows[owned]]]
    used = rows[mine[rows] != 0]
    size = np.abs(table[used])
    with np.errstate(over='ignore'):
      sums = size.sum(1, dtype=np.float64)
    if not np.isfinite(sums).all():
      raise CircuitError('contributions that are NaN or infinite, or whose sum overflows')
    factors = np.divide(mine[used], sums, out=np.zeros_like(sums), where=sums > 0)
    reached = factors.astype(size.dtype) @ size
    _check_below(reached, node_of_row[above])
    total += reached
  return total


def _descend(level: Int[np.ndarray, ' rows']) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The rows of each level from the highest down, and all rows that are not below it."""
  order = np.argsort(-np.asarray(level), kind='stable')
  ends = np.flatnonzero(np.diff(np.asarray(level)[order], append=np.iinfo(np.int64).min)) + 1
  for start, stop in zip([0, *ends[:-1]], ends):
    yield order[start:stop], order[:stop]


def _check_below(reached: np.ndarray, nodes: np.ndarray) -> None:
  if reached[..., nodes[nodes >= 0]].any():
    raise CircuitError(
      'the rows of the graph form a cycle',
      cause='a row has a contribution from a node of its own level or above',
    )


def cover(values: Float[np.ndarray, ' _'], share: float) -> Bool[np.ndarray, ' _']:
  """Marks the fewest values, the largest, whose sum reaches a share of the total.

  Args:
    values: finite, not negative.
    share: between 0 and 1.

  Raises:
    CircuitError: a share out of range; values that are negative or not finite.
  """
  if not 0 <= share <= 1:
    raise CircuitError(f'a share of {share}', hint='between 0 and 1')
  if not np.isfinite(values).all() or (values < 0).any():
    raise CircuitError('values that are negative, NaN or infinite have no cover')
  kept = np.zeros(len(values), bool)
  there = np.flatnonzero(values)
  numbers = values[there].astype(np.float64)
  wanted = share * numbers.sum()
  if wanted == 0:
    return kept
  bins = (numbers.view(np.uint64) >> np.uint64(46)).astype(np.int64)  # sign, exponent, 6 bits
  bins -= bins.min()
  sums = np.bincount(bins, weights=numbers)
  above = np.append(np.cumsum(sums[:0:-1])[::-1], 0.0)  # sum of all higher bins
  at = int(np.flatnonzero(above < wanted)[0])  # the lowest bin that is needed
  kept[there[bins > at]] = True
  inside = there[bins == at]
  order = inside[np.argsort(-values[inside], kind='stable')]
  running = above[at] + np.cumsum(values[order], dtype=np.float64)
  needed = int(np.searchsorted(running, wanted * (1 - 1e-12))) + 1
  kept[order[:needed]] = True
  return kept


def signed_shares(
  table: Float[np.ndarray, 'rows columns'],
  node_of_row: Int[np.ndarray, ' rows'],
  values: Float[np.ndarray, ' rows'],
  level: Int[np.ndarray, ' rows'],
  leaves_only: bool = True,
) -> Float64[np.ndarray, 'targets columns']:
  """Contributions of all columns to each target along all paths, with signs.

  A feature's contribution is divided among its own inputs in proportion to their contributions to it, so the sum over
  leaves is the value of the target exactly. A feature without a row of its own is a leaf.

  Args:
    table: contributions to each row.
    node_of_row: the column that each row explains; -1 for a target.
    values: value of each row's target; for a feature its activation.
    level: height of each row, as in `influence`.
    leaves_only: False to include what passes through each feature.

  Raises:
    CircuitError: a contribution from a row of the same level or above; a feature's activation is 0.
  """
  explained = node_of_row >= 0
  if (values[explained] == 0).any():
    raise CircuitError('a feature with activation 0 has no shares')
  total = table[~explained].astype(np.float64)
  for rows, above in _descend(np.where(explained, level, np.iinfo(np.int64).max)):
    rows = rows[explained[rows]]
    factors = total[:, node_of_row[rows]] / values[rows].astype(np.float64)
    for start in range(0, len(rows), 512):  # float64 of some rows at a time
      part = slice(start, start + 512)
      added = factors[:, part] @ table[rows[part]].astype(np.float64)
      _check_below(added, node_of_row[above])
      total += added
  if leaves_only:
    total[:, node_of_row[explained]] = 0
  return total
