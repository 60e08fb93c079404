"""Neurons and heads on repeated sequences: clipped neurons, induction heads, and heads that are switched off."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.neurons.settings import Settings
from experiments.neurons.subject import Subject
from experiments.outputs import make_plain
from mechjax.neurons import (
  Clip,
  LastLayer,
  NeuronAblation,
  Repetition,
  ablate_heads,
  measure_predictions,
  read_last_layer,
  score_heads,
)
from mechjax.neurons.unit_totals import Estimates


def measure_repeated(settings: Settings, subject: Subject, neurons: list[int]) -> dict[str, Any]:
  """Activations, entropy and loss over repeated sequences, and entropy with each neuron clipped.

  Args:
    settings: settings of the study.
    subject: the model and its texts.
    neurons: neurons of the last layer that are clipped, one at a time.
  """
  halves = Repetition(settings.half)
  model = subject.model
  found = read_last_layer(
    model.apply, model.params, subject.repeated, first=0, batch=settings.batch
  )
  plain = measure_predictions(subject.readout, found.x, found.next_tokens)
  before, after = halves.in_first(found.columns), halves.in_second(found.columns)
  clip, late = Clip.of(found.a[before], found.a[after]), found.take(after)
  ablate = NeuronAblation(subject.readout, subject.writes, memory=settings.memory * 2**20)
  changes = ablate.measure_tokens(
    late.x, late.a, late.next_tokens, replacement=clip(late.a), neurons=np.array(neurons)
  )
  n = len(subject.repeated)
  halved = {'first': before, 'second': after}
  means = {
    f'{name}_{half}': describe(
      Estimates.of_units(value[chosen].reshape(n, len(halves.second)).mean(1))
    )
    for name, value in (('entropy', plain.entropy), ('loss', plain.loss))
    for half, chosen in halved.items()
  }
  entropy, loss = (
    Estimates.of_units(changes[name].reshape(n, -1, len(neurons)).mean(1))
    for name in ('entropy_change', 'loss')
  )
  return make_plain({
    'neurons': neurons,
    'columns': np.unique(found.columns),
    'entropy': average(found, plain.entropy),
    'loss': average(found, plain.loss),
    'activations': average(found, found.a[:, neurons]).T,
    'bounds': clip.bounds[neurons],
    'rises': clip.rises[neurons],
    'sd': found.a[:, neurons].std(0, dtype=np.float64),
    **means,
    'clipped_entropy': describe(entropy),
    'clipped_loss': describe(loss),
  })  # fmt: skip


def measure_heads(settings: Settings, subject: Subject, neurons: list[int]) -> dict[str, Any]:
  """Induction scores of all heads, and the effects of switching the largest ones off.

  Args:
    settings, subject, neurons: as for `measure_repeated`.
  """
  model, texts = subject.model, subject.repeated[: settings.head_sequences]
  scores = score_heads(model.apply, model.params, texts, batch=max(1, settings.batch // 2))
  largest = scores.find_largest(settings.heads)
  found = ablate_heads(
    model.apply, model.params, texts, subject.readout, largest, neurons, batch=settings.batch
  )
  return make_plain({
    'scores': scores.scores.value,
    'scores_se': scores.scores.se,
    'heads': largest,
    'neurons': neurons,
    'plain_entropy': found.plain_entropy,
    'plain_loss': found.plain_loss,
    'plain_activations': describe(found.plain_activations),
    'entropy': describe(found.entropy),
    'loss': describe(found.loss),
    'activations': describe(found.activations),
  })  # fmt: skip


def average(layer: LastLayer, values: np.ndarray) -> np.ndarray:
  """Means over the texts at each column, in ascending order of the columns."""
  _, at = np.unique(layer.columns, return_inverse=True)
  total = np.zeros((at.max() + 1, *values.shape[1:]))
  np.add.at(total, at, values)
  return total / np.bincount(at).reshape(-1, *[1] * (values.ndim - 1))


def describe(estimates: Estimates) -> dict[str, np.ndarray]:
  """Numbers and their standard errors."""
  return {'value': estimates.value, 'se': estimates.se}
