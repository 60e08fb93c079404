"""Influence of nodes, the fewest nodes and edges that keep most of it, and scores of a graph.

The influence of a node on the targets adds up all paths, each edge weighted by its share of the absolute values of its
row (Ameisen et al. 2025, section 3.2.5):

    Â = |A|, each row divided by its sum          influence = p^T (Â + Â² + ...)       p: weights of the targets

A graph has no cycles, so the sum ends after as many terms as the longest path. It is computed as products of a vector
and the table of rows; no array of nodes by nodes exists, and nothing of that size is sorted: the smallest set that holds
a share of a total is found from a histogram of the bits of the numbers, of which only one bin is sorted.

Scores, as in the paper:

    completeness    share of the inputs of nodes that is not an error, weighted by their influence
    replacement     influence of the embeddings divided by that of embeddings and errors
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mechjax.errors import CircuitError


def influence(
  table: Float[np.ndarray, 'rows columns'],
  node_of_row: Int[np.ndarray, ' rows'],
  weights: Float[np.ndarray, ' rows'],
) -> Float64[np.ndarray, ' columns']:
  """Influence of every column on the targets, over all paths.

  Args:
    table: contributions to each row.
    node_of_row: the column that each row explains; -1 for a target.
    weights: importance of each row; 0 except for targets.

  Raises:
    CircuitError: the rows form a cycle.
  """
  size = np.abs(table)
  inverse = 1 / np.maximum(size.sum(1, dtype=np.float64), np.finfo(np.float64).tiny)
  total = np.zeros(table.shape[1])
  for _ in range(len(table) + 1):
    reached = (weights * inverse).astype(size.dtype) @ size
    total += reached
    weights = np.where(node_of_row >= 0, reached[node_of_row], 0.0)
    if not weights.any():
      return total
  raise CircuitError('the rows of the graph form a cycle', cause='a row explains a later column')


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
  if not len(there) or share == 0:
    return kept
  numbers = values[there].astype(np.float64)
  wanted = share * numbers.sum()
  bins = (numbers.view(np.uint64) >> np.uint64(46)).astype(np.int64)  # sign, exponent, 6 bits
  bins -= bins.min()
  sums = np.bincount(bins, weights=numbers)
  above = np.cumsum(sums[::-1])[::-1] - sums  # sum of all higher bins
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
  leaves_only: bool = True,
) -> Float64[np.ndarray, 'targets columns']:
  """What each column contributes to each target along all paths, with signs.

  A feature's contribution is divided among its own inputs in proportion to their contributions to it, so the sum over
  leaves is the value of the target exactly. A feature without a row of its own is a leaf.

  Args:
    table: contributions to each row.
    node_of_row: the column that each row explains; -1 for a target.
    values: value of each row's target; for a feature its activation.
    leaves_only: False to include what passes through each feature.

  Raises:
    CircuitError: the rows form a cycle; a feature's activation is 0.
  """
  explained = np.flatnonzero(node_of_row >= 0)
  if (values[explained] == 0).any():
    raise CircuitError('a feature with activation 0 has no shares')
  amounts = table[node_of_row < 0].astype(np.float64)
  total = np.zeros_like(amounts)
  for _ in range(len(table) + 1):
    passed = amounts[:, node_of_row[explained]]
    total += amounts
    if leaves_only:
      total[:, node_of_row[explained]] = 0
    if not passed.any():
      return total
    factors = passed / values[explained].astype(np.float64)
    amounts = _product(factors, table, explained)
  raise CircuitError('the rows of the graph form a cycle', cause='a row explains a later column')


def _product(factors: np.ndarray, table: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """factors @ table[rows] in float64, some rows at a time."""
  out = np.zeros((len(factors), table.shape[1]))
  for start in range(0, len(rows), 512):
    block = rows[start : start + 512]
    used = block[(factors[:, start : start + 512] != 0).any(0)]
    if len(used):
      mine = factors[:, start : start + 512][:, np.isin(block, used)]
      out += mine @ table[used].astype(np.float64)
  return out
