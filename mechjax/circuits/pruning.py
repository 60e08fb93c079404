"""The part of an attribution graph that holds most of the influence.

First the fewest nodes with `nodes` of the influence are kept, then, in the graph of these nodes, the fewest edges with
`edges` of the edges' influence; nodes without an edge to anything above, and features without one from below, are
removed until nothing changes (Ameisen et al. 2025, appendix "Graph pruning"). Embeddings and targets are always kept.

    small = prune(graph, nodes=0.8, edges=0.98)
    small.nodes, small.edges, small.scores()

Sharp edge: a feature that has no row in the graph has no known inputs; it is a leaf here, and is kept without any.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mechjax.circuits import influences
from mechjax.circuits.graph import Graph, scores


@dataclasses.dataclass(frozen=True, eq=False)
class PrunedGraph:
  """Nodes and edges that are kept.

  Attributes:
    graph: the whole graph.
    nodes: columns that are kept, increasing.
    influence: influence of each in the whole graph, [nodes].
    target_row: row of the graph that each edge leads to, [edges].
    source: column that it comes from, [edges].
    weight: contribution along it, [edges].
    score: its influence, [edges].
  """

  graph: Graph
  nodes: Int[np.ndarray, ' nodes']
  influence: Float64[np.ndarray, ' nodes']
  target_row: Int[np.ndarray, ' edges']
  source: Int[np.ndarray, ' edges']
  weight: Float[np.ndarray, ' edges']
  score: Float64[np.ndarray, ' edges']

  def scores(self) -> dict[str, float]:
    """'completeness' and 'replacement' if features that are not kept count as errors of their layer and position."""
    return score_nodes(self.graph, self.nodes)


def score_nodes(graph: Graph, nodes: Int[np.ndarray, ' _']) -> dict[str, float]:
  """'completeness' and 'replacement' if all other features count as errors of their layer and position.

  Args:
    graph: the whole graph.
    nodes: columns that are kept; only features matter.
  """
  columns = graph.columns
  dropped = np.setdiff1d(np.arange(columns.n_features), nodes)
  if not len(dropped):
    return graph.scores()
  table = graph.table.copy()
  place = graph.layer[dropped].astype(np.int64) * columns.n_positions + graph.position[dropped]
  order = np.argsort(place, kind='stable')
  places, starts = np.unique(place[order], return_index=True)
  sums = np.add.reduceat(table[:, dropped[order]], starts, axis=1)
  table[:, columns.of('error').start + places] += sums
  table[:, dropped] = 0
  rows = ~np.isin(graph.node_of_row, dropped)
  owner, weights, level = (x[rows] for x in (graph.node_of_row, graph.weights, graph.level))
  return scores(table[rows], owner, weights, level, columns)


def prune(graph: Graph, nodes: float = 0.8, edges: float = 0.98) -> PrunedGraph:
  """Keeps the fewest nodes and edges that hold most of the influence.

  Args:
    graph: the graph.
    nodes, edges: shares of the influence that are kept.

  Raises:
    CircuitError: a share that is not between 0 and 1.
  """
  columns, total = graph.columns, graph.influence()
  kept = influences.cover(total, nodes)
  kept[columns.of('embedding')] = True
  owner = graph.node_of_row
  rows = np.flatnonzero((owner < 0) | kept[owner])
  sources = np.flatnonzero(kept)
  table = graph.table[np.ix_(rows, sources)]
  mine = _renumber(owner[rows], sources)
  score = _edge_scores(table, mine, graph.weights[rows], graph.level[rows])
  there = influences.cover(score.reshape(-1), edges).reshape(score.shape)
  alive = _drop(there, mine, sources, graph)
  there &= alive[None, :] & ((mine < 0) | alive[mine])[:, None]
  at_row, at_source = np.nonzero(there)
  return PrunedGraph(
    graph, sources[alive], total[sources[alive]], rows[at_row], sources[at_source],
    table[at_row, at_source], score[at_row, at_source],
  )  # fmt: skip


def _renumber(owner: np.ndarray, sources: np.ndarray) -> Int[np.ndarray, ' rows']:
  """Index of each row's column among the kept ones; -1 for targets."""
  return np.where(owner < 0, -1, np.searchsorted(sources, np.maximum(owner, 0)))


def _edge_scores(
  table: np.ndarray, owner: np.ndarray, weights: np.ndarray, level: np.ndarray
) -> np.ndarray:
  """Share of each edge in its row, times the influence of the row."""
  total = influences.influence(table, owner, weights, level)
  mine = weights + np.where(owner < 0, 0, total[owner])
  size = np.abs(table)
  sums = np.maximum(size.sum(1, dtype=np.float64), np.finfo(np.float64).tiny)
  return size * (mine / sums)[:, None]


def _drop(
  there: Bool[np.ndarray, 'rows nodes'], owner: np.ndarray, sources: np.ndarray, graph: Graph
) -> Bool[np.ndarray, ' nodes']:
  """Nodes that still lead to a target, and features that still come from something."""
  columns, alive = graph.columns, np.ones(len(sources), bool)
  kinds = columns.kinds()[sources]
  fixed = kinds == 2  # embeddings
  explained = np.zeros(len(sources), bool)
  explained[owner[owner >= 0]] = True
  while True:
    live_rows = (owner < 0) | alive[owner]
    outgoing = there[live_rows].any(0)
    incoming = np.zeros(len(sources), bool)
    incoming[owner[owner >= 0]] = there[owner >= 0][:, alive].any(1)
    now = alive & (fixed | (outgoing & (incoming | ~explained)))
    if (now == alive).all():
      return alive
    alive = now
