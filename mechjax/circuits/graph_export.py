"""An attribution graph of this room as plain data, with texts, for its page and for Neuronpedia's files.

    data = as_data(prune(graph, nodes=0.95, edges=0.995), pieces, text=model.text, features={5: features})
    html = graph_page(data, title=...)                                  mechjax.viz.graph
    write_graph(data, 'graphs', slug=..., scan=...)                     mechjax.circuits.neuronpedia

The share of a node is the part of the first target's value that passes through it along all paths; those of leaves
(embeddings, errors, biases, and features without a row) sum to 1; a target whose value is 0 has none. Prune a graph of
more than some thousand nodes first: a page is slow beyond a hundred thousand links.

Ids: '3.17@5' is latent 17 of layer 3 at position 5; 'error.3@5', 'token@5', 'attention bias.3', 'mlp bias.3',
'constant', and 'logit.42' or the name of another target, with '@5' if it is a target at several positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mechjax.circuits.checks import check_whole
from mechjax.circuits.graph import Graph
from mechjax.circuits.graph_data import check_graph
from mechjax.circuits.pruning import PrunedGraph
from mechjax.errors import CircuitError
from mechjax.sae.features import Features

N_CONTEXTS, N_TOKENS = 3, 8
"""Contexts of a feature, and tokens that it promotes, at most."""


def as_data(
  graph: Graph | PrunedGraph,
  pieces: Sequence[str],
  *,
  text: Callable[[int], str] | None = None,
  labels: Mapping[tuple[int, int], str] | None = None,
  features: Mapping[int, Features] | None = None,
  target: int = 0,
) -> dict[str, Any]:
  """Plain data of a graph; see `graph_data`.

  Args:
    graph: the graph, or the part of it that pruning has kept.
    pieces: text of the token at each position.
    text: token id -> its text, for the names of outputs and for contexts.
    labels: descriptions of latents, keyed by (layer, latent).
    features: contexts of latents, keyed by layer; needs `text`.
    target: the target whose shares are shown.

  Raises:
    CircuitError: another number of pieces than positions, no such target, or features without `text`.
  """
  whole = graph.graph if isinstance(graph, PrunedGraph) else graph
  T, n_targets = whole.columns.n_positions, len(whole.targets)
  if len(pieces) != T:
    raise CircuitError(f'{len(pieces)} pieces of text for {T} positions')
  target = check_whole('target', target)
  if not 0 <= target < n_targets:
    raise CircuitError(f'target={target!r} of {n_targets}')
  if features and text is None:
    raise CircuitError('contexts of features without the texts of tokens', hint='text=model.text')
  kept, rows, sources, weights = _select(graph)
  value = whole.values[target]  # a target of 0 has no shares
  shares = whole.total_effects()[target] / value if value else None
  write = _NodeWriter(whole, pieces, text, labels or {}, features or {}, shares)
  nodes = [write.column(int(column)) for column in kept]
  nodes += [write.target(i) for i in range(n_targets)]
  place = np.full(len(whole.columns), -1)
  place[kept] = np.arange(len(kept))
  owner = whole.node_of_row[rows]
  ends = np.where(owner < 0, len(kept) + rows, place[np.maximum(owner, 0)])
  links = [
    [int(s), int(t), float(w)] for s, t, w in zip(place[sources], ends, weights, strict=True)
  ]
  return check_graph({
    'tokens': [*pieces], 'layers': whole.columns.n_layers, 'nodes': nodes, 'links': links
  })  # fmt: skip


def _select(
  graph: Graph | PrunedGraph,
) -> tuple[Int[np.ndarray, ' _'], Int[np.ndarray, ' _'], Int[np.ndarray, ' _'], np.ndarray]:
  """Columns that are kept, and of each link the row, the column of its source and the weight."""
  if isinstance(graph, PrunedGraph):
    return graph.nodes, graph.target_row, graph.source, graph.weight
  rows, sources = np.nonzero(graph.table)
  kept = np.union1d(sources, graph.explained)
  embeddings = graph.columns.of('embedding')
  return (
    np.union1d(kept, np.arange(embeddings.start, embeddings.stop)),
    rows,
    sources,
    graph.table[rows, sources],
  )


class _NodeWriter:
  """Writes nodes of a graph as plain data."""

  def __init__(
    self,
    graph: Graph,
    pieces: Sequence[str],
    text: Callable[[int], str] | None,
    labels: Mapping[tuple[int, int], str],
    features: Mapping[int, Features],
    shares: np.ndarray | None,
  ):
    self.graph, self.pieces, self.text = graph, pieces, text
    self.labels, self.features, self.shares = labels, features, shares

  def column(self, index: int) -> dict[str, Any]:
    """A node that contributes."""
    node = self.graph.node(index)
    share = None if self.shares is None else float(self.shares[index])
    l, t = node.layer, node.position
    if node.kind == 'feature':
      own = {'id': f'{l}.{node.latent}@{t}', 'latent': node.latent, 'activation': node.activation}
      found = {
        'kind': 'feature',
        'layer': l,
        'position': t,
        'label': self.labels.get((l, node.latent)),
      }
      return own | found | {'share': share} | self._texts(l, node.latent)
    if node.kind == 'error':
      return {'id': f'error.{l}@{t}', 'kind': 'error', 'layer': l, 'position': t, 'share': share}
    if node.kind == 'embedding':
      token = int(self.graph.tokens[t])
      found = {'id': f'token@{t}', 'kind': 'embedding', 'position': t, 'label': self.pieces[t]}
      return found | {'token': token, 'share': share}
    if node.kind == 'own':
      label = 'constants of the explained nodes'
      return {'id': 'constant', 'kind': 'bias', 'label': label, 'share': share}
    return {
      'id': f'{node.kind}.{l}',
      'kind': 'bias',
      'layer': l,
      'label': node.kind,
      'share': share,
    }

  def target(self, index: int) -> dict[str, Any]:
    """A node that is explained."""
    targets = self.graph.targets
    token, name = targets.tokens[index], targets.names[index]
    label = self.text(token) if self.text is not None and token >= 0 else name
    t, own = int(targets.position[index]), f'logit.{token}' if token >= 0 else name
    others = [i for i, key in enumerate(zip(targets.tokens, targets.names)) if key == (token, name)]
    own = f'{own}@{t}' if len(others) > 1 else own
    found = {'id': own, 'kind': 'logit', 'label': label}
    place = {'position': t, 'probability': float(targets.weight[index])}
    return found | place | ({'token': int(token)} if token >= 0 else {})

  def _texts(self, layer: int, latent: int) -> dict[str, Any]:
    """Contexts and promoted tokens of a latent, if they are known."""
    known = self.features.get(layer)
    if known is None or self.text is None or latent not in known.latents:
      return {}
    row, contexts = known.find_row(latent), []
    for n in np.flatnonzero(known.top.found[row])[:N_CONTEXTS]:
      tokens, values = known.top.tokens[row, n], known.top.activations[row, n]
      contexts.append([[self.text(int(i)), float(x)] for i, x in zip(tokens, values) if i >= 0])
    promoted = [self.text(int(i)) for i in known.promoted.ids[row][:N_TOKENS]]
    return {'contexts': contexts, 'promoted': promoted}
