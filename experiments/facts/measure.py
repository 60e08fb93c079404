"""All parts of the experiment, and their results as plain values.

    subject = prepare(settings, model)
    results = measure(settings, subject)           ready for JSON; `report` draws from these alone

A finished step is read from the output directory, so that an interrupted run continues with the same command, and a
part can be added later: the results of other parts in the directory stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments import outputs
from experiments.facts import chain, extract, hashing, local, lookup, neurons, readers, relations
from experiments.facts.names import Names, choose_names
from experiments.facts.settings import FREE, Settings
from experiments.facts.study import Study
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax import files
from mechjax.errors import FactsError

RESULTS = 'facts.json'


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the steps that the output directory does not have.

  Args:
    settings: settings of the experiment.
    subject: the model and the athletes.
    log: called with the name of each step that is computed.

  Raises:
    FactsError: as `claim`, and as the parts; finished parts are in the output directory.
  """
  fingerprint = subject.model.fingerprint()
  saved = claim(settings, fingerprint, log)
  parts = read_parts(saved)
  for part in settings.parts:
    parts[part] = outputs.make_plain(PARTS[part](settings, subject, saved))
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'layers': subject.model.n_layers,
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'parts': parts,
  }


def claim(settings: Settings, fingerprint: str, log: Callable[[str], Any] = print) -> Saved:
  """The results so far, which belong to one choice of settings and one model; see `outputs.claim`."""
  out = outputs.claim(settings.out, settings, FactsError, FREE, fingerprint=fingerprint)
  return Saved(out, log, FactsError)


def read_parts(saved: Saved) -> dict[str, Any]:
  """Results of the parts that earlier runs in this directory measured."""
  path = saved.out / RESULTS
  return dict(files.read_json(path, FactsError)['parts']) if path.exists() else {}


def measure_extract(settings: Settings, subject: Subject, saved: Saved) -> dict[str, Any]:
  """Direct effects, the chain to the best head, and its attention."""
  names = choose_names(settings, subject, saved)
  found = extract.measure_extraction(settings, subject, names, saved)
  return extract.describe(found, names) | {
    'chain': chain.measure_chain(settings, subject, names, found, saved),
    'attention': chain.measure_attention(settings, subject, names, found, saved),
  }


def measure_lookup(settings: Settings, subject: Subject, saved: Saved) -> dict[str, Any]:
  """Accuracy of the sport by layer, with and without other components."""
  names = choose_names(settings, subject, saved)
  found = extract.measure_extraction(settings, subject, names, saved)
  return lookup.measure_lookup(Study.of(settings, subject, names, found, saved))


def measure_hashing(settings: Settings, subject: Subject, saved: Saved) -> dict[str, Any]:
  """Statistics of hash and lookup, and of single neurons."""
  names: Names = choose_names(settings, subject, saved)
  found = extract.measure_extraction(settings, subject, names, saved)
  probe = readers.make_reader(readers.read_weights(subject.model), found.head, subject.sports)
  product = hashing.measure_hashing(settings, subject, names, probe, saved)
  return product | neurons.measure_neurons(settings, subject, names, probe, saved)


PARTS: dict[str, Callable[[Settings, Subject, Saved], dict[str, Any]]] = {
  'relations': relations.measure_relations,
  'extract': measure_extract,
  'lookup': measure_lookup,
  'hashing': measure_hashing,
  'local': lambda settings, subject, saved: local.measure_local(settings, subject.model, saved),
}
"""Function of each part."""
