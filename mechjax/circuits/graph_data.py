"""An attribution graph as plain data, which any program can write: the input of pages and of files.

    graph = {
      'tokens': ['<s>', 'The', ...],              text of the token at each position
      'layers': 18,
      'nodes': [{'id': '3_17_5', 'kind': 'feature', 'layer': 3, 'position': 5, 'latent': 17, 'label': 'sports',
                 'activation': 2.5, 'share': 0.12, 'contexts': [[['a', 0.0], [' ball', 2.5]], ...]}, ...],
      'links': [[0, 7, 0.31], ...],               indices of source and target in nodes, and the weight
    }

Kinds of nodes are 'embedding', 'feature', 'error', 'bias' and 'logit'. An id, a kind and a position are needed, and a
layer of all but embeddings and logits; of logits also 'probability'. A bias acts at all positions, so it may be without
a position, and without a layer. Optional are 'label', 'latent', 'token' (the id of
the token of an embedding or logit), 'activation', 'share' (the signed share of the target that a leaf explains),
'promoted' (tokens), and 'contexts' (pieces of text with activations). A weight is the contribution of the source to the
target; weights keep five digits. Influence is computed from the weights, by `measure_influence`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from mechjax.errors import CircuitError, unknown

KINDS = ('embedding', 'feature', 'error', 'bias', 'logit')
_NUMBERS = ('activation', 'share', 'probability')
_IDS = ('latent', 'token')
_FIELDS = ('id', 'kind', 'layer', 'position', *_IDS, 'label', *_NUMBERS, 'promoted', 'contexts')

Graph = Mapping[str, Any]
"""Tokens, layers, nodes and links."""

Supernodes = Mapping[str, Sequence[str]]
"""Ids of the nodes of each group, keyed by its label."""


def check_graph(graph: Graph) -> dict[str, Any]:
  """Checks a graph, and returns it with all fields of its nodes.

  Raises:
    CircuitError: missing parts, nodes of an unknown kind or place, two nodes of one id, numbers that are not finite,
      links between nodes that do not exist, or links in a circle.
  """
  if not isinstance(graph, Mapping):
    raise CircuitError(
      f'{type(graph).__name__} is not a graph as plain data',
      hint='as_data(graph, pieces) of mechjax.circuits.graph_export makes it of an attribution graph',
    )
  missing = [name for name in ('tokens', 'layers', 'nodes', 'links') if name not in graph]
  if missing:
    raise CircuitError(f'a graph without {missing[0]!r}', hint='tokens, layers, nodes and links')
  for name in ('tokens', 'nodes', 'links'):
    if isinstance(graph[name], str) or not isinstance(graph[name], Iterable):
      raise CircuitError(f'{name} of a graph are {graph[name]!r:.100}', hint='a list')
  tokens, L = [*graph['tokens']], graph['layers']
  if not tokens or not all(isinstance(piece, str) for piece in tokens):
    raise CircuitError('tokens should be texts, one for each position')
  if not _is_index(L, 2**31) or L < 1:
    raise CircuitError(f'layers={L!r} of a graph', hint='the number of layers of the model')
  nodes = [_check_node(node, len(tokens), L) for node in graph['nodes']]
  ids = [node['id'] for node in nodes]
  if len({*ids}) < len(ids):
    twice = next(i for i in ids if ids.count(i) > 1)
    raise CircuitError(f'two nodes have the id {twice!r}')
  if not any(node['kind'] == 'logit' for node in nodes):
    raise CircuitError('a graph without a node of kind logit has no influence to show')
  links = [_check_link(link, len(nodes)) for link in graph['links']]
  circle = {*range(len(nodes))} - {*_sort(len(nodes), links)}
  if circle:
    raise CircuitError(f'node {ids[min(circle)]!r} is on a circle of links, or after one')
  return {'tokens': tokens, 'layers': int(L), 'nodes': nodes, 'links': links}


def measure_influence(graph: Graph) -> Float64[np.ndarray, ' nodes']:
  """Influence of each node on the outputs: p^T (A + A^2 + ...), with p the probabilities of the outputs.

  A has the magnitudes of the weights, and the inputs of a node sum to 1 (Ameisen et al. 2025, "Circuit Tracing").

  Args:
    graph: a graph from `check_graph`.
  """
  n, links = len(graph['nodes']), graph['links']
  total, found = np.zeros(n), np.zeros(n)
  inputs: list[list[tuple[int, float]]] = [[] for _ in range(n)]
  for s, t, weight in links:
    total[t] += abs(weight)
    inputs[t].append((s, abs(weight)))
  for t in reversed(_sort(n, links)):
    here = found[t] + (graph['nodes'][t]['probability'] or 0.0)
    for s, weight in inputs[t]:
      found[s] += weight / total[t] * here if total[t] else 0.0
  return found


def read_supernodes(path: str | os.PathLike) -> dict[str, list[str]]:
  """Reads groups of nodes from a JSON file: {label: [id, ...]}, or [[label, id, ...], ...] as in Neuronpedia's files.

  Raises:
    CircuitError: a file that cannot be read, that is not JSON of one of these forms, or has a label twice.
  """
  found = read_json(Path(path), object_pairs_hook=list)
  if isinstance(found, list) and all(_is_texts(row) and row for row in found):
    found = [(row[0], row[1:]) for row in found]
  is_groups = isinstance(found, list) and all(isinstance(pair, tuple) for pair in found)
  if not is_groups or not all(_is_texts(ids) for _, ids in found):
    raise CircuitError(f'{path} does not hold supernodes', hint='{"label": ["id", ...], ...}')
  labels = [label for label, _ in found]
  if twice := sorted({label for label in labels if labels.count(label) > 1}):
    raise CircuitError(
      f'{path} has two supernodes {twice[0]!r}', hint='one label for each group: rename one of them'
    )
  return dict(found)


def read_json(path: Path, **options: Any) -> Any:
  """Parses a file; options are those of `json.loads`.

  Raises:
    CircuitError: a file that cannot be read, or is not JSON.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'), **options)
  except (OSError, ValueError, RecursionError) as e:
    raise CircuitError(f'{path} is not a JSON file that can be read', cause=str(e)) from e


def check_supernodes(supernodes: Supernodes, ids: Sequence[str]) -> dict[str, list[str]]:
  """Checks groups of nodes.

  Raises:
    CircuitError: an id that is not in the graph, or in two groups.
  """
  if not isinstance(supernodes, Mapping):
    raise CircuitError(f'supernodes={supernodes!r:.100}', hint="{'label': ['id', ...], ...}")
  for label, members in supernodes.items():
    is_list = isinstance(members, Iterable) and not isinstance(members, str)
    if not isinstance(label, str) or not is_list or not _is_texts([*members]):
      raise CircuitError(
        f'the supernode {label!r} is {members!r:.100}', hint="{'label': ['id', ...], ...}"
      )
  known = {*ids}
  owner: dict[str, str] = {}
  for label, members in supernodes.items():
    for member in members:
      if member not in known:
        raise unknown(CircuitError, f'node of the supernode {label!r}', member, sorted(known))
      if owner.setdefault(member, label) != label:
        raise CircuitError(f'node {member!r} is in the supernodes {owner[member]!r} and {label!r}')
  return {label: [*members] for label, members in supernodes.items()}


def _is_texts(ids: Any) -> bool:
  return isinstance(ids, list) and all(isinstance(i, str) for i in ids)


def _check_node(node: Mapping[str, Any], n_positions: int, n_layers: int) -> dict[str, Any]:
  name = node.get('id') if isinstance(node, Mapping) else None
  if not isinstance(name, str) or not name:
    raise CircuitError(f'a node without an id: {node!r:.200}')
  extra = sorted({*node} - {*_FIELDS})
  if extra:
    raise unknown(CircuitError, f'field of node {name!r}', extra[0], _FIELDS)
  kind, position, layer = node.get('kind'), node.get('position'), node.get('layer')
  if kind not in KINDS:
    raise unknown(CircuitError, f'kind of node {name!r}', kind, KINDS)
  free = kind == 'bias'
  if not _is_index(position, n_positions) and not (free and position is None):
    raise CircuitError(f'node {name!r} has position {position!r} of {n_positions}')
  if kind in ('embedding', 'logit'):
    layer = -1 if kind == 'embedding' else n_layers
  elif not _is_index(layer, n_layers) and not (free and layer is None):
    raise CircuitError(f'node {name!r} has layer {layer!r} of {n_layers}')
  for field in _NUMBERS:
    value = node.get(field)
    if value is not None and not (_is_number(value) and math.isfinite(value)):
      raise CircuitError(f'{field} of node {name!r} is {value!r}')
  for field in _IDS:
    value = node.get(field)
    if value is not None and not _is_index(value, 2**31):
      raise CircuitError(f'{field} of node {name!r} is {value!r}')
  _check_texts(name, node)
  if kind == 'logit' and not 0 <= (node.get('probability') or 0.0) <= 1:
    raise CircuitError(f'probability of node {name!r} is {node["probability"]!r}')
  plain: dict[str, Any] = {}
  for fields, convert in ((_NUMBERS, float), (_IDS, int)):
    plain |= {field: convert(node[field]) for field in fields if node.get(field) is not None}
  return {
    **dict.fromkeys(_FIELDS), **node, **plain,
    'layer': None if layer is None else int(layer), 'position': None if position is None else int(position),
    'probability': plain.get('probability', 0.0) if kind == 'logit' else None,
  }  # fmt: skip


def _check_texts(name: str, node: Mapping[str, Any]) -> None:
  label, promoted, contexts = (node.get(field) for field in ('label', 'promoted', 'contexts'))
  if label is not None and not isinstance(label, str):
    raise CircuitError(f'label of node {name!r} is {label!r:.100}', hint='a text')
  if promoted is not None and not _is_texts(promoted):
    raise CircuitError(f'promoted of node {name!r} is {promoted!r:.100}', hint='a list of texts')
  if contexts is not None and not (isinstance(contexts, list) and all(map(_is_context, contexts))):
    raise CircuitError(
      f'contexts of node {name!r} are {contexts!r:.100}',
      hint="lists of texts with finite activations: [[['a', 0.0], [' ball', 2.5]], ...]",
    )


def _is_context(context: Any) -> bool:
  return isinstance(context, list | tuple) and all(
    isinstance(pair, list | tuple)
    and len(pair) == 2
    and isinstance(pair[0], str)
    and _is_number(pair[1])
    and math.isfinite(pair[1])
    for pair in context
  )


def _check_link(link: Sequence[Any], n_nodes: int) -> list:
  good = (
    isinstance(link, Sequence)
    and len(link) == 3
    and all(_is_index(i, n_nodes) for i in link[:2])
    and _is_number(link[2])
  )
  if not good or not math.isfinite(link[2]):
    raise CircuitError(f'link {link!r:.100} is not [source, target, weight] of {n_nodes} nodes')
  return [int(link[0]), int(link[1]), float(f'{float(link[2]):.5g}')]


def _sort(n_nodes: int, links: Sequence[Sequence]) -> list[int]:
  """Nodes with sources before their targets; nodes on a circle and after it are missing."""
  waiting = np.bincount([t for _, t, _ in links], minlength=n_nodes)
  targets: list[list[int]] = [[] for _ in range(n_nodes)]
  for s, t, _ in links:
    targets[s].append(t)
  ready, found = [i for i in range(n_nodes) if not waiting[i]], []
  while ready:
    found.append(ready.pop())
    for t in targets[found[-1]]:
      waiting[t] -= 1
      if not waiting[t]:
        ready.append(t)
  return found


def _is_index(value: Any, n: int) -> bool:
  whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
  return whole and 0 <= int(value) < n


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
