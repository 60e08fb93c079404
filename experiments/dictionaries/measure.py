"""All studies, and their results as plain values.

    results = measure(settings, prepare(settings, model))

Finished steps are read from the output directory, so that an interrupted run continues with the same command, and
further studies and given dictionaries are added to what is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments import outputs
from experiments.dictionaries import dark_matter, diffing, end_to_end, stability, variants
from experiments.dictionaries.settings import FREE, STUDIES, Settings
from experiments.dictionaries.study import Study
from experiments.dictionaries.subject import Subject
from experiments.saved import Saved
from mechjax.errors import SAEError

RUN: dict[str, Callable[[Study], dict[str, Any]]] = {
  'end_to_end': end_to_end.run,
  'diffing': diffing.run,
  'stability': stability.run,
  'dark_matter': dark_matter.run,
  'variants': variants.run,
}


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the studies that are chosen.

  Args:
    settings: settings of the studies.
    subject: the model, texts and dictionaries.
    log: called with the name of each step that is computed.

  Raises:
    SAEError: the directory holds results of other settings or weights; otherwise as the studies.
  """
  fingerprint = subject.model.fingerprint()
  out = outputs.claim(settings.out, settings, SAEError, FREE, fingerprint=fingerprint)
  study = Study(settings, subject, Saved(out, log, SAEError))
  chosen = [name for name in STUDIES if name in settings.studies]
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'studies': {name: outputs.make_plain(RUN[name](study)) for name in chosen},
  }
