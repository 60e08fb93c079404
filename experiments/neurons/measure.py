"""All steps of the study, and their results as plain values.

    subject = prepare(settings, model)
    results = measure(settings, subject)           ready for JSON; `report` draws from these alone

A finished step is read from the output directory, so that an interrupted run continues with the same command. The
effects of all neurons are saved block by block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import outputs
from experiments.neurons.repeated import measure_heads, measure_repeated
from experiments.neurons.settings import FREE, Settings
from experiments.neurons.subject import Subject, iterate_blocks
from experiments.saved import Saved
from mechjax import extras
from mechjax.errors import NeuronError
from mechjax.neurons import (
  LastLayer,
  NeuronAblation,
  NeuronEffects,
  mean_prediction,
  measure_predictions,
  measure_rho,
  profile,
)
from mechjax.neurons.unit_totals import Estimates
from mechjax.neurons.weights import as_vectors


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the steps that the output directory does not have.

  Args:
    settings: settings of the study.
    subject: the model and its texts.
    log: called with the name of each step that is computed.

  Raises:
    NeuronError: the directory holds results of other settings or weights; otherwise as the steps.
  """
  fingerprint = subject.model.fingerprint()
  out = outputs.claim(settings.out, settings, NeuronError, FREE, fingerprint=fingerprint)
  saved = Saved(out, log, NeuronError)
  weights = saved.arrays('weights', None, lambda: measure_weights(settings, subject))
  layer = LastLayer(**saved.arrays('layer', None, lambda: vars(subject.read(settings))))
  effects = measure_effects(settings, subject, layer, saved)
  chosen = choose(settings, effects)
  own = saved.arrays('own_unigram', chosen, lambda: measure_own(settings, subject, layer, chosen))
  plain = measure_predictions(subject.readout, layer.x, layer.next_tokens)
  repeated = saved.json(
    'repeated', chosen['clipped'], lambda: measure_repeated(settings, subject, chosen['clipped'])
  )
  heads = saved.json(
    'heads', chosen['clipped'], lambda: measure_heads(settings, subject, chosen['clipped'])
  )
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'last_layer': subject.model.n_layers - 1,
    'tokens': {
      'effects': len(layer.x), 'contexts': len(np.unique(layer.rows)), 'counted': subject.counted,
      'skipped': [subject.model.tokenizer.piece(i) for i in subject.skipped],
      'loss': float(plain.loss.mean()), 'entropy': float(plain.entropy.mean()),
    },
    'weights': _make_plain(weights),
    'effects': _make_plain(as_arrays(effects)),
    'sd': outputs.make_plain(layer.a.std(0, dtype=np.float64)),
    'own': _make_plain(own),
    'chosen': chosen,
    'repeated': repeated,
    'heads': heads,
  }  # fmt: skip


def measure_weights(settings: Settings, subject: Subject) -> dict[str, Any]:
  """The weight profile of all neurons, and rho of the same vectors rotated and shuffled."""
  readout = subject.readout
  k = settings.k or max(1, round(readout.width / 100))
  found = profile(readout, subject.writes, k, unigram=subject.unigram)
  null, vectors = readout.find_null_space(k), as_vectors(readout, subject.writes)
  random = np.random.default_rng(settings.seed)
  rotation, _ = np.linalg.qr(random.standard_normal((readout.width, readout.width)))
  controls = {'rotated': vectors @ rotation, 'shuffled': random.permuted(vectors, axis=1)}
  if readout.norm == 'layer':
    controls = {name: x - x.mean(1, keepdims=True) for name, x in controls.items()}
  return {
    **dataclasses.asdict(found),
    'singular_values': readout.singular_values,
    **{f'rho_{name}': measure_rho(x, null) for name, x in controls.items()},
  }


def measure_effects(
  settings: Settings, subject: Subject, layer: LastLayer, saved: Saved
) -> NeuronEffects:
  """The effects of all neurons, from one file for each block."""
  ablate = NeuronAblation(subject.readout, subject.writes, memory=settings.memory * 2**20)
  F = layer.a.shape[1]
  tqdm = extras.require('tqdm', 'models').tqdm
  parts = []
  with tqdm(total=F * len(layer.x), desc='effects', unit='pair', unit_scale=True) as bar:
    for neurons in iterate_blocks(F, settings.block):

      def compute(neurons: np.ndarray = neurons) -> dict[str, np.ndarray]:
        found = ablate(
          layer.x, layer.a, layer.next_tokens, unigram=subject.unigram, units=layer.rows,
          neurons=neurons, progress=bar.update,
        )  # fmt: skip
        return as_arrays(found)

      name, end = f'effects_{neurons[0]}', bar.n + len(neurons) * len(layer.x)
      parts.append(from_arrays(saved.arrays(name, [settings.block], compute)))
      bar.update(end - bar.n)
  return NeuronEffects.join(parts)


def measure_own(
  settings: Settings, subject: Subject, layer: LastLayer, chosen: dict[str, list[int]]
) -> dict[str, np.ndarray]:
  """Frequency effects of some neurons with the mean prediction of the model as the distribution."""
  p = mean_prediction(subject.readout, layer.x)
  ablate = NeuronAblation(subject.readout, subject.writes, memory=settings.memory * 2**20)
  neurons = np.unique(chosen['frequency'] + chosen['random'])
  found = ablate(layer.x, layer.a, layer.next_tokens, unigram=p, units=layer.rows, neurons=neurons)
  both = np.log(p), np.log(subject.unigram)
  return {**as_arrays(found), 'correlation': np.corrcoef(*both)[0, 1]}


def choose(settings: Settings, effects: NeuronEffects) -> dict[str, list[int]]:
  """Neurons of the tables: by norm-mediated and frequency-mediated effect, and at random."""
  assert effects.frequency_mediated is not None
  random = np.random.default_rng(settings.seed).permutation(len(effects.neurons))
  by = {'norm': effects.mediated, 'frequency': effects.frequency_mediated}
  chosen = {
    name: np.argsort(-one.value, kind='stable')[: settings.rows].tolist()
    for name, one in by.items()
  }
  chosen['random'] = random[: settings.controls].tolist()
  top = chosen['norm'][: settings.clipped]
  others = [i for i in random.tolist() if i not in top][: settings.clipped]
  return chosen | {'clipped': [*top, *others]}


def as_arrays(effects: NeuronEffects) -> dict[str, np.ndarray]:
  """Effects as arrays: 'total' and 'total_se', and so on; quantities that are None are left out."""
  out: dict[str, np.ndarray] = {}
  for name, value in vars(effects).items():
    if isinstance(value, Estimates):
      out |= {name: value.value, f'{name}_se': value.se}
    elif value is not None:
      out[name] = np.asarray(value)
  return out


def from_arrays(arrays: dict[str, np.ndarray]) -> NeuronEffects:
  """The effects that `as_arrays` was given."""
  found: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(NeuronEffects))
  for name, value in arrays.items():
    if f'{name}_se' in arrays:
      found[name] = Estimates(value, arrays[f'{name}_se'])
    elif not name.endswith('_se'):
      found[name] = value if value.ndim else value.item()
  return NeuronEffects(**found)


def _make_plain(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """Arrays for JSON, those without axes as numbers."""
  return outputs.make_plain(
    {k: v if np.ndim(v) else np.asarray(v).item() for k, v in arrays.items()}
  )
