"""Attribution graphs: which features, tokens, errors and biases make a model's answer, and through which others.

    frozen = Frozen.of(model.apply, model.params, tokens, Replacement(transcoders), maps=maps)
    graph = attribute(frozen, logits(frozen, mass=0.95), rows=4_000)
    graph.check()                       largest error of a row: what is missing from its sum
    graph.scores()                      completeness, replacement
    small = graph.pruned(nodes=0.8, edges=0.98)
    graph.signed_shares()               what each token, error and bias contributes to each target; they sum to it

A graph is a table: one row for each target and each explained feature, one column for each node that can contribute. It
is complete: a row sums to the value of what it explains. Where there are more features than rows that can be paid for,
rows are chosen by the influence that features have on the targets in the graph so far (Ameisen et al. 2025, section
3.2.5); features without a row are leaves.

Nodes are numbered by column: features, errors by layer and position, embeddings, the target's own constant, biases of
attention by layer, biases of MLPs by layer. `graph.node(i)` says what a number is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

from mechjax.circuits import influences
from mechjax.circuits import targets as targets_lib
from mechjax.circuits.checks import SAME, check_whole
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.rows import attribute_rows, fit_batch, stream_rows
from mechjax.circuits.targets import Targets
from mechjax.decomposition.array_checks import check_count
from mechjax.errors import CircuitError

KINDS = ('feature', 'error', 'embedding', 'own', 'attention bias', 'mlp bias')
"""Kinds of nodes, in the order of the columns."""


@dataclasses.dataclass(frozen=True)
class GraphNode:
  """Description of a column of a graph.

  Attributes:
    kind: one of `KINDS`.
    layer, position: place; -1 for a node without it.
    latent: index of the feature in its dictionary, or -1.
    activation: of a feature, otherwise NaN.
  """

  kind: str
  layer: int = -1
  position: int = -1
  latent: int = -1
  activation: float = float('nan')


@dataclasses.dataclass(frozen=True)
class Columns:
  """The numbering of nodes.

  Attributes:
    n_features, n_layers, n_positions: number of active features, L, T.
  """

  n_features: int
  n_layers: int
  n_positions: int

  @property
  def counts(self) -> tuple[int, ...]:
    """Number of nodes of each kind."""
    L, T = self.n_layers, self.n_positions
    return self.n_features, L * T, T, 1, L, L

  def __len__(self) -> int:
    return sum(self.counts)

  def of(self, kind: str) -> slice:
    """The columns of a kind.

    Raises:
      CircuitError: no such kind.
    """
    if kind not in KINDS:
      raise CircuitError(f'no nodes of kind {kind!r}', hint=f'one of {", ".join(KINDS)}')
    ends = np.cumsum((0, *self.counts))
    return slice(int(ends[KINDS.index(kind)]), int(ends[KINDS.index(kind) + 1]))

  def kinds(self) -> Shaped[np.ndarray, ' columns']:
    """Index in `KINDS` of each column."""
    return np.repeat(np.arange(len(KINDS)), self.counts)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
  """A table of contributions.

  Attributes:
    columns: the numbering of its nodes.
    targets: what the first rows explain.
    explained: index of the feature that each further row explains, [rows - targets].
    table: contributions, [rows, columns].
    values: value of what each row explains, [rows].
    layer, position, latent, activation: of each feature.
    tokens: [T].
  """

  columns: Columns
  targets: Targets
  explained: Int[np.ndarray, ' _']
  table: Float[np.ndarray, 'rows columns']
  values: Float[np.ndarray, ' rows']
  layer: Int[np.ndarray, ' features']
  position: Int[np.ndarray, ' features']
  latent: Int[np.ndarray, ' features']
  activation: Float[np.ndarray, ' features']
  tokens: Int[np.ndarray, ' T']

  @property
  def node_of_row(self) -> Int[np.ndarray, ' rows']:
    """The column that each row explains; -1 for a target."""
    return np.concatenate([np.full(len(self.targets), -1), self.explained]).astype(np.int64)

  @property
  def level(self) -> Int[np.ndarray, ' rows']:
    """Height of each row: the layer of its feature; targets are above all layers."""
    above = np.full(len(self.targets), self.columns.n_layers)
    return np.concatenate([above, self.layer[self.explained]]).astype(np.int64)

  @property
  def weights(self) -> Float64[np.ndarray, ' rows']:
    """Weights of the targets, which sum to 1; 0 for the other rows."""
    weights = np.zeros(len(self.table))
    weights[: len(self.targets)] = self.targets.weight / np.sum(self.targets.weight)
    return weights

  def node(self, index: int) -> GraphNode:
    """Describes a column.

    Raises:
      CircuitError: no such column.
    """
    index = check_whole('node', index)
    if not 0 <= index < len(self.columns):
      raise CircuitError(f'node {index} of {len(self.columns)}')
    kind = KINDS[int(self.columns.kinds()[index])]
    i, T = index - self.columns.of(kind).start, self.columns.n_positions
    if kind == 'feature':
      place = int(self.layer[i]), int(self.position[i]), int(self.latent[i])
      return GraphNode(kind, *place, float(self.activation[i]))
    if kind == 'error':
      return GraphNode(kind, i // T, i % T)
    return (
      GraphNode(kind, -1, i) if kind == 'embedding' else GraphNode(kind, -1 if kind == 'own' else i)
    )

  def errors(self) -> Float64[np.ndarray, ' rows']:
    """Part of each value that is missing from the sum of its row, relative to the largest entry."""
    miss = np.abs(self.table.sum(1, dtype=np.float64) - self.values)
    return miss / np.maximum(np.abs(self.table).max(1), np.finfo(self.table.dtype).tiny)

  def check(self) -> float:
    """Largest of `errors`."""
    return float(self.errors().max())

  def influence(self) -> Float64[np.ndarray, ' columns']:
    """Influence of every node on the targets."""
    return influences.influence(self.table, self.node_of_row, self.weights, self.level)

  def scores(self) -> dict[str, float]:
    """'completeness' and 'replacement' of the graph."""
    return scores(self.table, self.node_of_row, self.weights, self.level, self.columns)

  def signed_shares(self) -> Float64[np.ndarray, 'targets columns']:
    """Contribution of each leaf to each target along all paths; each row sums to the target's value."""
    return influences.signed_shares(self.table, self.node_of_row, self.values, self.level)

  def total_effects(self) -> Float64[np.ndarray, 'targets columns']:
    """Contributions that pass through each node on their way to each target, along all paths."""
    return influences.signed_shares(
      self.table, self.node_of_row, self.values, self.level, leaves_only=False
    )


def scores(
  table: Float[np.ndarray, 'rows columns'],
  node_of_row: Int[np.ndarray, ' rows'],
  weights: Float[np.ndarray, ' rows'],
  level: Int[np.ndarray, ' rows'],
  columns: Columns,
) -> dict[str, float]:
  """Completeness and replacement of a table of contributions."""
  total = influences.influence(table, node_of_row, weights, level)
  error, embedding = (total[columns.of(k)].sum() for k in ('error', 'embedding'))
  size = np.abs(table)
  sums = size.sum(1, dtype=np.float64)
  errors = size[:, columns.of('error')].sum(1, dtype=np.float64)
  of_errors = np.divide(errors, sums, out=np.zeros_like(sums), where=sums > 0)
  mine = weights + np.where(node_of_row >= 0, total[node_of_row], 0)
  return {
    'completeness': float((mine * (1 - of_errors)).sum() / mine.sum()),
    'replacement': float(embedding / max(embedding + error, 1e-300)),
  }


def attribute(
  frozen: Frozen,
  targets: Targets | None = None,
  rows: int | None = None,
  *,
  batch: int = 64,
  refresh: int = 4,
) -> Graph:
  """Makes the attribution graph of a run.

  Args:
    frozen: the run.
    targets: what is explained; None for the likely tokens at the last position.
    rows: largest number of features that are explained, of those that have an influence; None for all features.
    batch: rows of one walk.
    refresh: number of batches between two rankings of the features that wait for a row.

  Raises:
    CircuitError: no targets, or those of another run; numbers out of range.
  """
  targets = targets_lib.logits(frozen) if targets is None else targets
  F, (L, T, _) = len(frozen.features), frozen.errors.shape
  batch = fit_batch(frozen, check_count('batch', batch))
  refresh = check_count('refresh', refresh)
  rows = None if rows is None else check_count('rows', rows, 0)
  n, columns = len(targets), Columns(F, L, T)
  wanted = F if rows is None else min(rows, F)
  table = np.zeros((n + wanted, len(columns)), frozen.layout.dtype)
  table[:n] = attribute_rows(frozen, targets, batch).table()
  explained = np.zeros(0, np.int64)
  while len(explained) < wanted:
    room = wanted - len(explained)
    if wanted == F:
      chosen = np.arange(F)
    else:
      done = table[: n + len(explained)]
      order = _rank(done, explained, targets, frozen.features.layer, L)
      chosen = order[: min(room, batch * refresh)]
    if not len(chosen):
      break
    _fill(frozen, table, n + len(explained), chosen, batch)
    explained = np.concatenate([explained, chosen])
  f = frozen.features
  values = np.concatenate([targets.value, f.activation[explained]])
  return Graph(
    columns, targets, explained, table[: n + len(explained)], values, f.layer, f.position,
    f.latent, f.activation, np.asarray(frozen.tokens),
  )  # fmt: skip


def _rank(
  table: np.ndarray, explained: np.ndarray, targets: Targets, layer: np.ndarray, L: int
) -> Int[np.ndarray, ' _']:
  """Features without a row that have an influence, the largest first."""
  n = len(targets)
  node_of_row = np.concatenate([np.full(n, -1), explained])
  weights = np.zeros(len(table))
  weights[:n] = targets.weight / np.sum(targets.weight)
  level = np.concatenate([np.full(n, L), layer[explained]])
  total = influences.influence(table, node_of_row, weights, level)[: len(layer)]
  total[explained] = 0
  order = np.argsort(-total, kind='stable')
  return order[: int(np.count_nonzero(total))]


def _fill(
  frozen: Frozen, table: np.ndarray, start: int, chosen: Sequence[int] | np.ndarray, batch: int
) -> None:
  """Computes the rows of features into a table, in the order of `chosen`; batches hold features of near layers."""
  chosen = np.asarray(chosen)
  order = np.argsort(frozen.features.layer[chosen], kind='stable')
  parts = [order[at : at + batch] for at in range(0, len(order), batch)]
  pieces = (targets_lib.features(frozen, chosen[part]) for part in parts)
  for part, found in zip(parts, stream_rows(frozen, pieces, batch)):
    table[start + part] = found.table()


def check_graph_of(frozen: Frozen, graph: Graph) -> None:
  """Raises CircuitError unless a graph is one of this run."""
  f = frozen.features
  pairs = [
    (graph.tokens, frozen.tokens),
    *((getattr(graph, n), getattr(f, n)) for n in ('layer', 'position', 'latent')),
  ]
  same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
  if same and np.allclose(graph.activation, f.activation, rtol=SAME, atol=0):
    return
  raise CircuitError(
    f'a graph of {graph.columns.n_features} features at {graph.columns.n_positions} positions, '
    f'and a run of {len(f)} features at {len(frozen.tokens)} positions, which are not the same',
    cause='the graph of another run',
    hint='attribute(frozen, ...) of this run',
  )
