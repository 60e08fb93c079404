"""All steps of the experiment, and their results as plain values.

    results, graphs = measure(settings, prepare(settings, model))

Results are ready for JSON; `report` draws from these alone. Graphs are the plain data of the pages, keyed by the names
of their files. A finished step is read from the output directory, so that an interrupted run continues with the same
command, and further dictionaries and prompts are added to what is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments import outputs
from experiments.circuits import effects, texts
from experiments.circuits.dictionaries import Dictionary
from experiments.circuits.evaluation import evaluate
from experiments.circuits.graphs import find_targets, freeze, measure_graph
from experiments.circuits.prompts import Prompt
from experiments.circuits.settings import FREE, Settings
from experiments.circuits.subject import Subject
from experiments.saved import Saved
from mechjax import fingerprints
from mechjax.errors import CircuitError


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Runs the steps that the output directory does not have.

  Args:
    settings: settings of the experiment.
    subject: the model, its prompts, dictionaries and contexts.
    log: called with the name of each step that is computed.

  Returns:
    The results, and the plain data of each graph by the name of its files.

  Raises:
    CircuitError: the directory holds results of other settings or weights; otherwise as the steps.
  """
  fingerprint = subject.model.fingerprint()
  out = outputs.claim(settings.out, settings, CircuitError, FREE, fingerprint=fingerprint)
  saved = Saved(out, log, CircuitError)
  found: dict[str, Any] = {}
  graphs: dict[str, Any] = {}
  for one in subject.dictionaries:
    found[one.label], own = measure_dictionary(settings, subject, one, saved)
    graphs |= own
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'text': subject.source,
    'prompts': {p.name: {'text': p.text, 'tokens': [*p.pieces]} for p in subject.prompts},
    'dictionaries': found,
  }, graphs


def measure_dictionary(
  settings: Settings, subject: Subject, one: Dictionary, saved: Saved
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Evaluation, graphs and effects of one dictionary, and the plain data of its graphs."""
  found: dict[str, Any] = {
    'kind': one.kind, 'place': one.place, 'evaluation': None, 'prompts': {}
  }  # fmt: skip
  if settings.tokens:
    rows = fingerprints.of_weights(subject.rows)
    key = [one.fingerprint, one.limits, rows, subject.special]
    found['evaluation'] = saved.json(
      f'evaluation_{one.slug}', key, lambda: outputs.make_plain(evaluate(subject, one, settings))
    )
  graphs: dict[str, Any] = {}
  for prompt in subject.prompts:
    name = f'{one.slug}_{prompt.name}'
    graph, found['prompts'][prompt.name] = measure_prompt(
      settings, subject, one, prompt, saved, name
    )
    graphs[name] = graph
  return found, texts.add_texts(settings, subject, one, saved, graphs)


def measure_prompt(
  settings: Settings, subject: Subject, one: Dictionary, prompt: Prompt, saved: Saved, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The plain data of a graph, and its measurements with the effects of features."""
  key = [one.fingerprint, prompt.tokens.tolist(), prompt.answer]
  graph = saved.json(
    f'graph_{name}',
    key,
    lambda: outputs.make_plain(
      measure_graph(freeze(subject, one, prompt), prompt, subject, settings)
    ),
  )
  chosen = graph['chosen']

  def compute() -> dict[str, Any]:
    frozen = freeze(subject, one, prompt)
    targets = find_targets(frozen, settings)
    return effects.measure_effects(subject, one, frozen, targets, chosen)

  indices = [features['feature'] for features in chosen.values()]
  measured = saved.json(f'effects_{name}', [*key, indices], compute)
  agreed = outputs.make_plain(effects.compare(chosen, measured, settings.seed))
  rest = {k: v for k, v in graph.items() if k != 'graph'}
  return graph['graph'], rest | {'measured': measured, 'agreement': agreed}
