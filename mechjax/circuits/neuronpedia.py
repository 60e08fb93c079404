"""Attribution graphs in the JSON of Neuronpedia and of circuit-tracer's front end, written and read.

    write_graph(graph, 'graphs', slug='jordan', scan='gemma-3-270m', transcoders=['ours/skip'])
    graph = read_graph('graphs/jordan.json')                     as plain data, see `graph_data`

A directory holds a file for each graph and `graph-metadata.json`, the list of their metadata; `neuronpedia_features`
writes the contexts of its features next to them. Schema 1 has four kinds
of nodes, with ids that the front end takes apart:

    feature   {layer}_{latent}_{position}      'cross layer transcoder' (also of dictionaries of one layer)
    error     0_{layer}_{position}             'mlp reconstruction error'
    token     E_{token id}_{position}          'embedding'
    output    {layers + 1}_{token id}_{position}   'logit'

Sharp edges. There are no bias nodes: a link of a bias is added to that of the error of its layer and position (without
a layer, of layer 0; without a position, at that of its target), and the metadata states it. The id of an error is that
of latent {layer} of layer 0 at the same position: two nodes with one id are refused. Signed shares have no place in the
format and are lost. `influence` there is the cumulative share of all nodes up to this one, in descending order.
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.circuits.graph_data import (
  Graph,
  check_graph,
  check_supernodes,
  measure_influence,
  read_json,
)
from mechjax.errors import CircuitError

SCHEMA = 1
METADATA = 'graph-metadata.json'
TYPES = {
  'feature': 'cross layer transcoder',
  'error': 'mlp reconstruction error',
  'embedding': 'embedding',
  'logit': 'logit',
}
_KINDS = {text: kind for kind, text in TYPES.items()}
_LABEL = re.compile(r'(?:Emb: |Output )"(.*)"(?: \(p=[\d.]+\))?', re.DOTALL)
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


def write_graph(
  graph: Graph,
  directory: str | os.PathLike,
  *,
  slug: str,
  scan: str,
  transcoders: Sequence[str] = (),
  supernodes: Mapping[str, Sequence[str]] | None = None,
  node_threshold: float = 1.0,
) -> Path:
  """Writes a graph, and adds it to the metadata of its directory.

  Args:
    graph: the graph, see `graph_data`; embeddings and logits with 'token'.
    directory: the directory, which is made if it does not exist.
    slug: name of the file, without '.json'.
    scan: name of the model.
    transcoders: names of the dictionaries.
    supernodes: ids of the nodes of each group, keyed by its label.
    node_threshold: share of the influence at which the graph was pruned.

  Returns:
    Path of the file.

  Raises:
    CircuitError: a graph that is not one, nodes that the format cannot name or tell apart, a slug that is not a name.
  """
  check_name('slug', slug)
  if f'{slug}.json'.lower() == METADATA:
    raise CircuitError(f'slug={slug!r} is the name of the list of graphs', hint='another slug')
  content = encode_graph(
    graph, slug=slug, scan=scan, transcoders=transcoders, supernodes=supernodes, node_threshold=node_threshold
  )  # fmt: skip
  home = Path(directory)
  home.mkdir(parents=True, exist_ok=True)
  known = read_json(home / METADATA) if (home / METADATA).exists() else {}
  if not isinstance(known, dict) or not isinstance(known.get('graphs', []), list):
    raise CircuitError(f'{home / METADATA} is not a list of graphs')
  others = [
    one
    for one in known.get('graphs', [])
    if not isinstance(one, Mapping) or one.get('slug') != slug
  ]
  path = home / f'{slug}.json'
  files.write_json(path, content)
  files.write_json(home / METADATA, known | {'graphs': [*others, content['metadata']]})
  return path


def read_graph(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a graph as plain data; see `graph_data`.

  Raises:
    CircuitError: a file that does not hold a graph of this format.
  """
  return decode_graph(read_json(Path(path)), str(path))


def check_name(what: str, name: str) -> None:
  """Raises CircuitError unless a text can be the name of a file."""
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise CircuitError(f'{what}={name!r} is not a name of letters, digits, dots and dashes')


def encode_graph(
  graph: Graph,
  *,
  slug: str,
  scan: str,
  transcoders: Sequence[str] = (),
  supernodes: Mapping[str, Sequence[str]] | None = None,
  node_threshold: float = 1.0,
) -> dict[str, Any]:
  """The JSON of a graph; arguments and errors as for `write_graph`.

  Returns:
    Metadata, qParams, nodes and links.
  """
  checked = check_graph(graph)
  if not isinstance(scan, str) or not scan:
    raise CircuitError(f'scan={scan!r}', hint='the name of the model')
  if isinstance(transcoders, str):
    raise CircuitError(f'transcoders={transcoders!r} is a text', hint=f'[{transcoders!r}]')
  if not isinstance(node_threshold, numbers.Real) or not 0 < node_threshold <= 1:
    raise CircuitError(f'node_threshold={node_threshold!r}', hint='above 0 and at most 1')
  groups = check_supernodes(supernodes or {}, [node['id'] for node in checked['nodes']])
  n_folded = sum(node['kind'] == 'bias' for node in checked['nodes'])
  merged, names = _fold_biases(checked)
  influence = _accumulate(measure_influence(merged))
  nodes = [
    _encode_node(node, name, value, merged)
    for node, name, value in zip(merged['nodes'], names, influence)
  ]
  ids = {node['id']: name for node, name in zip(merged['nodes'], names)}
  metadata = {
    'slug': slug, 'scan': scan, 'transcoder_list': [*transcoders], 'prompt_tokens': merged['tokens'],
    'prompt': ''.join(merged['tokens']), 'node_threshold': node_threshold, 'schema_version': SCHEMA,
  }  # fmt: skip
  if n_folded:
    metadata['info'] = {'biases': f'the links of {n_folded} bias nodes are part of those of errors'}
  return {
    'metadata': metadata,
    'qParams': {
      'pinnedIds': [], 'linkType': 'both', 'clickedId': '', 'sg_pos': '',
      'supernodes': [[label, *(ids[m] for m in members if m in ids)] for label, members in groups.items()],
    },
    'nodes': nodes,
    'links': [
      {'source': names[s], 'target': names[t], 'weight': weight} for s, t, weight in merged['links']
    ],
  }  # fmt: skip


def decode_graph(content: Any, where: str = 'the graph') -> dict[str, Any]:
  """Plain data of the JSON of a graph.

  Args:
    content: the parsed JSON.
    where: name of its file in messages.

  Raises:
    CircuitError: not a graph of this format.
  """
  try:
    tokens = content['metadata']['prompt_tokens']
    given, links = content['nodes'], content['links']
    layers = [int(node['layer']) for node in given if node['feature_type'] == TYPES['logit']]
    nodes = [_decode_node(node) for node in given]
    at = {node['id']: i for i, node in enumerate(nodes)}
    plain = [[at[link['source']], at[link['target']], link['weight']] for link in links]
  except (AttributeError, KeyError, TypeError, ValueError, IndexError) as e:
    raise CircuitError(
      f'{where} does not hold an attribution graph of schema {SCHEMA}',
      cause=f'{type(e).__name__}: {e}',
      hint='a JSON of Neuronpedia or circuit-tracer, with metadata, nodes and links',
    ) from e
  if len({*layers}) != 1:
    raise CircuitError(f'{where} has outputs at the layers {sorted({*layers})}')
  return check_graph({'tokens': tokens, 'layers': layers[0] - 1, 'nodes': nodes, 'links': plain})


# --- writing ---------------------------------------------------------------------------------------------------


def _fold_biases(graph: Graph) -> tuple[dict[str, Any], list[str]]:
  """A graph without bias nodes, and the ids of its nodes in the format."""
  nodes = graph['nodes']
  new = [node for node in nodes if node['kind'] != 'bias']
  place = {i: n for n, i in enumerate(i for i, x in enumerate(nodes) if x['kind'] != 'bias')}
  errors = {(x['layer'], x['position']): n for n, x in enumerate(new) if x['kind'] == 'error'}
  sums: dict[tuple[int, int], float] = {}
  for s, t, weight in graph['links']:
    source = place.get(s)
    if source is None:
      position = nodes[t]['position'] if nodes[s]['position'] is None else nodes[s]['position']
      at = nodes[s]['layer'] or 0, position
      if at not in errors:
        errors[at] = len(new)
        layer, position = at
        new.append(nodes[s] | {'kind': 'error', 'layer': layer, 'position': position})
      source = errors[at]
    key = source, place[t]
    sums[key] = sums.get(key, 0.0) + weight
  names = [_name(node, graph['layers']) for node in new]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    found = [node['id'] for node, name in zip(new, names) if name == twice[0]]
    raise CircuitError(
      f'the nodes {found} have the one id {twice[0]!r} in this format',
      cause='the id of an error is that of a latent of layer 0 with the number of the layer of the error',
      hint='drop one of them, or renumber the latents of layer 0',
    )
  return {**graph, 'nodes': new, 'links': [[s, t, w] for (s, t), w in sums.items()]}, names


def _name(node: Mapping[str, Any], n_layers: int) -> str:
  kind, t = node['kind'], node['position']
  wanted = {'feature': 'latent', 'embedding': 'token', 'logit': 'token'}.get(kind)
  if wanted is not None and node[wanted] is None:
    raise CircuitError(
      f'node {node["id"]!r} of kind {kind} has no {wanted!r}, of which its id is made'
    )
  if kind == 'feature':
    return f'{node["layer"]}_{node["latent"]}_{t}'
  if kind == 'error':
    return f'0_{node["layer"]}_{t}'
  return f'E_{node["token"]}_{t}' if kind == 'embedding' else f'{n_layers + 1}_{node["token"]}_{t}'


def _accumulate(influence: np.ndarray) -> list[float]:
  """Cumulative shares of the nodes in descending order."""
  order = np.argsort(-influence, kind='stable')
  total = influence.sum() or 1.0
  found = np.empty(len(influence))
  found[order] = np.cumsum(influence[order]) / total
  return found.tolist()


def _encode_node(
  node: Mapping[str, Any], name: str, influence: float, graph: Graph
) -> dict[str, Any]:
  kind, l, t = node['kind'], node['layer'], node['position']
  layer = {'embedding': 'E', 'logit': str(graph['layers'] + 1)}.get(kind, str(l))
  latent = node['latent'] if kind == 'feature' else None
  number = {'error': -1, 'feature': pair(l, latent or 0)}.get(kind, node['token'])
  label = node['label'] or ''
  if kind == 'logit':
    label = f'Output "{label}" (p={node["probability"]:.3f})'
  elif kind == 'embedding' and not label:
    label = f'Emb: "{graph["tokens"][t]}"'
  return {
    'node_id': name, 'feature': number, 'layer': layer, 'ctx_idx': t, 'feature_type': TYPES[kind],
    'token_prob': node['probability'] or 0.0, 'is_target_logit': False, 'run_idx': 0, 'reverse_ctx_idx': 0,
    'jsNodeId': f'{layer}_{latent}-0' if kind == 'feature' else f'{name}-0', 'clerp': label,
    'influence': None if kind == 'logit' else influence, 'activation': node['activation'],
  }  # fmt: skip


def pair(layer: int, latent: int) -> int:
  """Cantor's number of a pair, by which the front end finds the file of a feature."""
  total = layer + latent
  return total * (total + 1) // 2 + latent


# --- reading ---------------------------------------------------------------------------------------------------


def _decode_node(node: Mapping[str, Any]) -> dict[str, Any]:
  kind = _KINDS[node['feature_type']]
  found = {
    'id': node['node_id'], 'kind': kind, 'position': node['ctx_idx'], 'label': node.get('clerp') or None,
    'activation': node.get('activation'),
  }  # fmt: skip
  parts = node['node_id'].split('_')
  if kind in ('feature', 'error'):
    found['layer'] = int(parts[1] if kind == 'error' else parts[0])
  if kind == 'feature':
    found['latent'] = int(parts[1])
  if kind in ('embedding', 'logit'):
    found['token'] = int(parts[1])
  if kind == 'logit':
    found['probability'] = node['token_prob']
  label = _LABEL.fullmatch(found['label'] or '')
  if label and kind in ('embedding', 'logit'):
    found['label'] = label[1]
  return found
