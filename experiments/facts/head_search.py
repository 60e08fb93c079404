"""Every head of the model as a reader of the sport: chosen on one half of the names, measured on the other.

If one head's weights read the sport, others may as well: the heads that direct effects name (`extract`) must be found
again from weights alone, at the layer where lookup ends or at each head's own input. The largest of many accuracies is
large by chance, so that the control is the largest one of the same search with shuffled sports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.facts.names import correct_error
from experiments.facts.streams import ALONE
from experiments.facts.study import Study, summarise
from mechjax.probing.mechanistic import search_heads

LISTED = 12
"""Heads in the table."""

Places = dict[str, Float[np.ndarray, 'B ... D']]
"""Streams [B, D] that all heads read, and [B, L, D] of which each head reads its own layer."""


def measure_heads(study: Study) -> dict[str, Any]:
  """Accuracies of all heads from the name alone, at the layer where lookup ends and at the head's own input.

  Returns:
    'rows': for the best heads by the half that chooses: name, then accuracy of both halves and the error of the second
    one, at both places. 'median': median over heads of the measured accuracy at both places. 'best': accuracy of the
    head that each half chooses by its own accuracy. 'shuffled': the largest accuracy of any head with shuffled sports,
    by draw and place.
  """
  return describe(study.saved.arrays('heads', study.key, lambda: search(study)))


def search(study: Study) -> dict[str, np.ndarray]:
  """Accuracies of each half [halves, 2, L, N], and the largest ones with shuffled sports [shuffles, 2]."""
  before = study.streams.intact(ALONE)
  places = {'after lookup': before[:, study.looks_up], 'own input': before[:, :-1]}
  labels = study.names.labels
  rows: dict[str, list[np.ndarray]] = {'chosen': [], 'measured': [], 'shuffled': []}
  for half in study.halves:
    for name, some in (('chosen', half.train), ('measured', half.test)):
      rows[name].append(score_heads(study, places, labels, half.train, some))
  random = np.random.default_rng(study.settings.seed)
  for number in range(study.settings.shuffles):
    half, mixed = study.halves[number % len(study.halves)], random.permutation(labels)
    rows['shuffled'].append(score_heads(study, places, mixed, half.train, half.test).max((1, 2)))
  return {name: np.array(r) for name, r in rows.items()}


def score_heads(
  study: Study,
  places: Places,
  labels: Int[np.ndarray, ' B'],
  chosen: Int[np.ndarray, ' _'],
  measured: Int[np.ndarray, ' _'],
) -> Float[np.ndarray, '2 L N']:
  """Accuracy of every head on some names, centred by the names that choose."""
  parts = []
  for streams in places.values():
    x, reference = (np.moveaxis(streams[rows], 0, -2) for rows in (measured, chosen))
    found = search_heads(
      study.weights, x, labels[measured], study.subject.sports, centre_on=reference
    )
    parts.append(found.accuracy)
  return np.array(parts)


def describe(found: dict[str, np.ndarray]) -> dict[str, Any]:
  """The table, from the accuracies."""
  n_heads = found['chosen'].shape[3]
  chosen, measured = (x.reshape(*x.shape[:2], -1) for x in (found['chosen'], found['measured']))
  order = np.argsort(-chosen.mean(0).max(0), kind='stable')[:LISTED]
  error = correct_error(measured)
  best = np.take_along_axis(measured, chosen.argmax(2)[..., None], 2)[..., 0]
  rows: list[list[Any]] = []
  for i in map(int, order):
    layer, head = divmod(i, n_heads)
    row: list[Any] = [f'{layer}.{head}']
    for place in (0, 1):
      row += [float(x[place, i]) for x in (chosen.mean(0), measured.mean(0), error)]
    rows.append(row)
  return {
    'rows': rows,
    'median': np.median(measured.mean(0), axis=1).tolist(),
    'best': summarise(best),
    'shuffled': found['shuffled'].tolist(),
  }
