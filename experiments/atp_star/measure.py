"""Measurements: the truth from an exact sweep, and the distance of each method from it.

The first step is the ability of the model: the place where a wrong answer is made is not evidence about the origin of a
right one, so pairs that the model gets wrong are left out, and counted. Then every node is patched, which takes
nearly all of the time and is saved while it runs; then come the methods, each judged in five ways:

    spearman      rank correlation of its scores with the true contributions, over all nodes
    costs         forward passes per pair until the true top K have been patched, for the chosen K
    aggregate     the same for all K up to `CURVE` as one number: geometric mean with weights 1/K
    missed        number of nodes of the true top K that are not in its own top K; `false_negatives` names them
    verified      bounds, from random checks and random subsets, on the nodes that it has not reached

    measured = measure(model, tasks.build('ioi', model, 8), Settings(nodes='heads'), save='truth.npz')
    measured.metrics                          # plain numbers and strings, ready for JSON

Sharp edges: before the first token that differs both runs of a causal model are equal, and no patch has an effect.
Those positions are left out (positions='reached') unless all are requested ('each'), which costs the searches without
gradients more than it costs the others. If queries and keys are not among the nodes, the QK fix has nothing to
fix. Effects below the rounding of a forward pass (about 1e-5 logits) have an arbitrary order.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import tasks
from experiments.atp_star.methods import AT_ONCE, METHODS, MethodResult, Question, drop_duplicates
from experiments.atp_star.settings import NODES, Settings
from mechjax import harvest
from mechjax.models.language_model import LanguageModel
from mechjax.patching import (
  ActivationPatching,
  Effects,
  NodeSet,
  PatchingError,
  baselines,
  nodes_of,
)
from mechjax.patching import verify as verification

CURVE = 1000
"""Maximum K of curves and aggregates, if there are that many nodes."""

_LISTED = 100
"""Number of the largest nodes that are listed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
  """Results of a run.

  Attributes:
    metrics: all results as plain numbers and strings.
    truth: the exact effects.
    found: result of each method, by its key.
    tokens: token or slot name at each position.
  """

  metrics: dict[str, Any]
  truth: Effects
  found: dict[str, MethodResult]
  tokens: tuple[str, ...]


def measure(
  model: LanguageModel,
  task: tasks.Task,
  settings: Settings,
  *,
  save: str | os.PathLike | None = None,
  progress: bool = False,
  log: Callable[[str], Any] = print,
) -> Measurement:
  """Measures the truth and every method.

  Args:
    model: the model.
    task: a task made for it, from one template.
    settings: the settings of the measurement.
    save: file that the exact sweep is saved to and resumed from.
    progress: whether to show the progress of the sweep.
    log: called with each result as a line of text.

  Returns:
    The metrics, and the data that they were computed from.

  Raises:
    PatchingError: a model that gets no pair right; fewer nodes than the largest K; the errors of patching.
  """
  able = tasks.ability(model, task)
  log(able['text'])
  task = tasks.keep(model, task)
  log(task.selection)
  question = ask(model, task, settings)
  if len(question.nodes) < max(settings.ks):
    raise PatchingError(f'K {max(settings.ks)} of {len(question.nodes)} nodes', hint='smaller ks')
  log(f'{len(question.nodes):,} nodes on {len(task)} pairs of {len(task.columns)} tokens')
  truth, cost = sweep(question, save, progress)
  log(f'exact: {cost["patches"]:,} patches in {cost["seconds"]:.1f} s')
  found = {}
  for name in drop_duplicates(question, settings.methods):
    found[name] = one = METHODS[name](question)
    log(f'{one.name}: {one.spent:g} passes per pair, {one.seconds:.2f} s')
  metrics = {
    'model': model.name,
    'versions': versions(),
    'settings': _plain(dataclasses.asdict(settings)),
    'task': describe(task),
    'ability': able,
    'ability_kept': tasks.ability(model, task),
    'nodes': count_nodes(question.nodes),
    'joint': question.joint,
    'truth': {'title': truth.title, **cost, 'base': truth.base.tolist(), 'other': truth.other.tolist()},
    'top': list_largest(truth, found, task.columns),
    'curve': curve(truth, found),
    'methods': {
      name: judge(one, found, truth, settings, task.columns) for name, one in found.items()
    },
  }  # fmt: skip
  if settings.verify:
    for name, one in found.items():
      if one.effects is not None:
        metrics['methods'][name]['verified'] = bounds(question, one, truth, settings)
        log(f'{one.name}: bounds done')
  return Measurement(metrics, truth, found, task.columns)


# --- the question and the truth ---------------------------------------------------------------------


def ask(model: LanguageModel, task: tasks.Task, settings: Settings) -> Question:
  """Makes the question that the settings describe for a task."""
  infos = harvest.sites_of(model.apply, model.params, task.pairs.clean)
  names = NODES[settings.nodes]
  if settings.layers:
    names = ', '.join(f'{name}.{{{settings.layers}}}' for name in names.split(', '))
  length = len(task.columns)  # raises if positions mean different things
  reached = int((task.pairs.clean != task.pairs.noise).any(axis=0).argmax())
  positions = {'reached': range(reached, length), 'last': [length - 1]}
  nodes = nodes_of(
    infos, names,
    positions=positions.get(settings.positions, settings.positions),
    neurons='each' if settings.nodes == 'neurons' else 'together',
  )  # fmt: skip
  joint = settings.joint or max(20, len(nodes) // 10)
  return Question(model, task, nodes, settings.mode, settings.budget, joint, settings.seed)


def sweep(
  question: Question, save: str | os.PathLike | None, progress: bool
) -> tuple[Effects, dict[str, Any]]:
  """Measures the exact effects, and the cost of this run: patches and seconds."""
  model, nodes = question.model, question.nodes
  exact = ActivationPatching(
    model.apply, nodes, question.mode, question.budget, forward_from=model.forward_from
  )
  before = _count_saved(save)
  start = time.perf_counter()
  truth = exact(model.params, question.task.pairs, question.metric, save=save, progress=progress)
  return truth, {
    'patches': truth.values.size - before,
    'saved_before': before,
    'seconds': time.perf_counter() - start,
  }


def _count_saved(path: str | os.PathLike | None) -> int:
  if path is None or not os.path.exists(path):
    return 0
  try:
    with np.load(path) as kept:
      return int(kept['done'].sum())
  except Exception:  # not the file of a sweep: ActivationPatching refuses it with a reason
    return 0


# --- quality of the methods -------------------------------------------------------------------------


def judge(
  one: MethodResult,
  found: dict[str, MethodResult],
  truth: Effects,
  settings: Settings,
  tokens: tuple[str, ...],
) -> dict[str, Any]:
  """Computes the metrics of one method."""
  true, ks = truth.contribution(), settings.ks
  every = np.arange(1, min(CURVE, len(true)) + 1)
  costs = baselines.recall_cost(one.search, true)
  return {
    'name': one.name,
    'passes': float(one.spent),
    'seconds': one.seconds,
    'spearman': baselines.spearman(one.scores, true),
    'costs': costs[np.array(ks) - 1].tolist(),
    'aggregate': baselines.aggregate(costs[every - 1], every),
    'aggregate_over_oracle': baselines.aggregate(costs[every - 1] / every, every),
    'missed': [len(baselines.false_negatives(one.search, true, k)) for k in ks],
    'false_negatives': list_missed(one, found, truth, max(ks), tokens),
  }


def list_missed(
  one: MethodResult,
  found: dict[str, MethodResult],
  truth: Effects,
  k: int,
  tokens: tuple[str, ...],
  limit: int = 20,
) -> list[dict[str, Any]]:
  """Lists the nodes of the true top k that a method places worst, and the methods with them in their first k."""
  return [
    {
      'node': m.node,
      'label': truth.nodes[m.node].label(tokens),
      'rank': m.rank,
      'contribution': m.contribution,
      'place': m.place,
      'score': float(one.scores[m.node]) if one.effects is not None else None,
      'found_by': [
        other.name
        for other in found.values()
        if other.effects is not None and other.search.place[m.node] < k
      ],
    }
    for m in baselines.false_negatives(one.search, truth.contribution(), k)[:limit]
  ]


def curve(truth: Effects, found: dict[str, MethodResult]) -> dict[str, Any]:
  """Cost of verified recall for every K up to `CURVE`."""
  true = truth.contribution()
  ks = np.arange(1, min(CURVE, len(true)) + 1)
  costs = {key: baselines.recall_cost(one.search, true, ks).tolist() for key, one in found.items()}
  return {'k': ks.tolist(), 'costs': costs}


def list_largest(
  truth: Effects, found: dict[str, MethodResult], tokens: tuple[str, ...]
) -> list[dict[str, Any]]:
  """Lists the largest nodes, with the place of each in the ranking of every method."""
  mean = truth.mean()
  return [
    {
      'label': node.label(tokens),
      'contribution': contribution,
      'mean': float(mean[i]),
      'places': {key: int(one.search.place[i]) + 1 for key, one in found.items()},
    }
    for i, (node, contribution) in zip(truth.ranking(), truth.top(_LISTED))
  ]


def bounds(
  question: Question, one: MethodResult, truth: Effects, settings: Settings
) -> dict[str, Any]:
  """Bounds on the nodes that a method has not reached, and the true values."""
  true, k = truth.contribution(), max(settings.ks)
  n = len(true)
  path = min(2 * k, n)
  checks = min(settings.verify // 2, n - path)
  subsets = settings.verify - settings.verify // 2
  result = verification.verify(
    one.search, with_lookup(truth, question.patch), k, float(one.search.passes[path - 1]),
    checks=checks, subsets=subsets, seed=question.seed, batch=AT_ONCE,
  )  # fmt: skip
  left = np.isnan(result.effects).any(axis=1)
  return {
    'path': path,
    'checks': checks,
    'subsets': 0 if result.subsets is None else subsets,
    'spent': result.spent,
    'threshold': result.threshold,
    'found': result.found,
    'missed_bound': result.missed,
    'missed': int((true[left] > result.threshold).sum()),
    'largest_bound': result.bound,
    'largest': float(true[left].max(initial=0.0)),
  }


def with_lookup(truth: Effects, patch: baselines.Patch) -> baselines.Patch:
  """A version of `patch` that looks up the effects of single nodes in the truth."""

  def run(members: np.ndarray) -> np.ndarray:
    single = members.sum(axis=1) == 1
    out = np.empty((len(members), truth.values.shape[1]))
    out[single] = truth.values[members[single].argmax(axis=1)]
    if not single.all():
      out[~single] = patch(members[~single])
    return out

  return run


# --- context for the reader -------------------------------------------------------------------------


def describe(task: tasks.Task) -> dict[str, Any]:
  """Describes a task in words."""
  return {
    'name': task.name,
    'question': task.question,
    'pairs': len(task),
    'selection': task.selection,
    'columns': list(task.columns),
    'prompts': [_plain(dataclasses.asdict(p)) for p in task.prompts],
  }


def count_nodes(nodes: NodeSet) -> dict[str, Any]:
  """Counts the nodes, in total and at each site."""
  sites = {g.name: int((nodes.table[:, 0] == number).sum()) for number, g in nodes.grids_in_use()}
  return {'count': len(nodes), 'sites': sites}


def versions() -> dict[str, Any]:
  """Versions of the software, and the device."""
  device = jax.devices()[0]
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in ('mechjax', 'jax', 'jaxlib', 'numpy')},
    'device': f'{device.platform} {device.device_kind}',
    'cores': os.cpu_count(),
  }


def _plain(tree: Any) -> Any:
  """A copy with tuples as lists, as in JSON."""
  if isinstance(tree, dict):
    return {key: _plain(value) for key, value in tree.items()}
  return [_plain(x) for x in tree] if isinstance(tree, (list, tuple)) else tree
