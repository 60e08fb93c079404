"""One graph: its scores, its shares by kind of node, its scores by number of features, and its page as plain data.

    frozen = freeze(subject, dictionary, prompt)
    found = measure_graph(frozen, prompt, subject, settings)
    found['scores'], found['curve'], found['chosen'], found['graph']

Scores by number of features: the n explained features with the most influence stay, and all other features count as
errors of their layer and position, as in a graph that is pruned to n features. So a feature without a row is an error
there, while the scores of the whole graph leave it out: it is neither a token nor an error.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments.circuits.dictionaries import Dictionary
from experiments.circuits.prompts import Prompt
from experiments.circuits.settings import Settings
from experiments.circuits.subject import Subject
from mechjax.circuits import Frozen, Graph, Targets, attribute, logits, prune, score_nodes
from mechjax.circuits.graph import KINDS
from mechjax.circuits.graph_export import as_data
from mechjax.errors import CircuitError

SIZES = (3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of features at which scores are computed, and the number of all explained features."""
UNEXPLAINED = 'feature without a row'
"""Kind of the features that are leaves, in addition to `KINDS`."""


def freeze(subject: Subject, dictionary: Dictionary, prompt: Prompt) -> Frozen:
  """The run of a prompt with a dictionary."""
  model = subject.model
  return Frozen.of(model.apply, model.params, prompt.tokens, dictionary.replaced, maps=subject.maps)


def find_targets(frozen: Frozen, settings: Settings) -> Targets:
  """The likely next tokens."""
  return logits(frozen, settings.mass, settings.outputs)


def measure_graph(
  frozen: Frozen, prompt: Prompt, subject: Subject, settings: Settings
) -> dict[str, Any]:
  """Makes the graph of a prompt and measures it.

  Returns:
    Plain values; README.md defines them.

  Raises:
    CircuitError: a table over the bound on memory.
  """
  targets = find_targets(frozen, settings)
  check_size(frozen, len(targets), settings)
  start = time.perf_counter()
  graph = attribute(frozen, targets, settings.rows, batch=settings.row_batch)
  seconds = time.perf_counter() - start
  influence, errors = graph.influence(), graph.errors()
  small = prune(graph, settings.keep_nodes, settings.keep_links)
  data = as_data(small, prompt.pieces, text=subject.piece)
  n_features = int((small.nodes < graph.columns.n_features).sum())
  return {
    'features': graph.columns.n_features,
    'rows': len(graph.explained),
    'seconds': seconds,
    'outputs': describe_outputs(frozen, prompt, targets, subject),
    'row_error': {'largest': float(errors.max()), 'median': float(np.median(errors))},
    'scores': graph.scores(),
    'influence': sum_influence(graph, influence),
    'shares': sum_shares(graph),
    'curve': measure_curve(graph, influence),
    'pruned': {'features': n_features, 'nodes': len(small.nodes), 'links': len(small.source)}
    | small.scores(),
    'chosen': choose(graph, influence, settings),
    'graph': data,
  }


def check_size(frozen: Frozen, n_targets: int, settings: Settings) -> None:
  """Checks the size of the table before it is made.

  Raises:
    CircuitError: it is over the bound.
  """
  F, (L, T, _) = len(frozen.features), frozen.errors.shape
  if not F:
    raise CircuitError(
      'no feature is active on the prompt', cause='a dictionary of another model, or a dead one'
    )
  size = (n_targets + min(settings.rows, F)) * (F + L * T + T + 1 + 2 * L)
  size *= frozen.errors.dtype.itemsize
  if size > settings.memory * 2**20:
    raise CircuitError(
      f'a graph of {F} features with {min(settings.rows, F)} rows needs {size / 2**20:.0f} MiB, and the bound is '
      f'{settings.memory} MiB',
      hint='fewer --rows, a smaller --top, a shorter prompt, or a larger --memory',
    )


def describe_outputs(
  frozen: Frozen, prompt: Prompt, targets: Targets, subject: Subject
) -> dict[str, Any]:
  """The explained tokens, and the probability and rank of the answer."""
  piece = subject.piece
  scores = np.asarray(frozen.logits[-1], np.float64)
  probs = np.exp(scores - scores.max())
  probs /= probs.sum()
  tokens = [
    {'token': t, 'text': piece(t), 'probability': float(probs[t]), 'value': float(v)}
    for t, v in zip(targets.tokens, targets.value)
  ]
  found: dict[str, Any] = {'tokens': tokens, 'answer': None}
  if prompt.answer is not None:
    p = probs[prompt.answer]
    rank = int((probs > p).sum()) + 1
    found['answer'] = {'text': piece(prompt.answer), 'probability': float(p), 'rank': rank}
  return found


def sum_influence(graph: Graph, influence: np.ndarray) -> dict[str, float]:
  """Influence of the leaves by kind, relative to that of all leaves."""
  return _normalise(_sum_leaves(graph, influence))


def sum_shares(graph: Graph) -> dict[str, float]:
  """Signed shares of the first target by kind of leaf; they sum to 1."""
  shares = graph.signed_shares()[0] / graph.values[0]
  return _sum_leaves(graph, shares)


def _sum_leaves(graph: Graph, values: np.ndarray) -> dict[str, float]:
  leaves = np.array(values, np.float64)
  leaves[graph.explained] = 0
  found = {kind: float(leaves[graph.columns.of(kind)].sum()) for kind in KINDS}
  return {UNEXPLAINED: found.pop('feature')} | found


def _normalise(values: dict[str, float]) -> dict[str, float]:
  total = sum(values.values())
  return {name: value / total for name, value in values.items()}


def measure_curve(graph: Graph, influence: np.ndarray) -> list[dict[str, float]]:
  """Scores by number of features that are kept."""
  explained = graph.explained
  order = explained[np.argsort(-influence[explained], kind='stable')]
  sizes = [n for n in SIZES if n < len(order)] + [len(order)]
  return [{'features': n} | score_nodes(graph, order[:n]) for n in sizes]


def choose(graph: Graph, influence: np.ndarray, settings: Settings) -> dict[str, Any]:
  """Features to remove: those with the most influence, and random ones, with their predicted effects.

  Returns:
    'top' and 'random', each with 'feature', 'layer', 'position', 'latent', 'activation' and 'influence', and predicted
    changes of all targets if the feature is removed: 'direct' along its own edges to them, 'total' along all paths.
  """
  n = graph.columns.n_features
  total = graph.total_effects()[:, :n]
  order = np.argsort(-influence[:n], kind='stable')
  top = order[: settings.removed]
  rest = np.setdiff1d(np.flatnonzero(np.abs(total).max(0) > 0), top)
  random = np.random.default_rng(settings.seed)
  drawn = np.sort(random.permutation(rest)[: settings.controls])
  direct = graph.table[: len(graph.targets), :n]
  return {
    name: {
      'feature': index.tolist(),
      'layer': graph.layer[index].tolist(),
      'position': graph.position[index].tolist(),
      'latent': graph.latent[index].tolist(),
      'activation': graph.activation[index].tolist(),
      'influence': influence[index].tolist(),
      'direct': (-direct[:, index].T).tolist(),
      'total': (-total[:, index].T).tolist(),
    }
    for name, index in (('top', top), ('random', drawn))
  }
