"""Predicted against measured changes of the outputs when features are removed one at a time.

A graph predicts two changes of a logit: along the feature's own edges to it, and along all paths, through other
features. The first is what happens if everything else is frozen (`constrained`, equal by linearity: a check). The
second is compared with the model, whose norms and MLPs react (`semi-free`), and with the replacement model, whose
features are computed again (`iterative`); attention patterns stay frozen in all of them.

    measured = measure_effects(subject, dictionary, frozen, targets, chosen)
    agree(predicted, measured, seed)            Spearman, share of equal signs, each with a standard error
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.circuits.dictionaries import Dictionary
from experiments.circuits.subject import Subject
from mechjax.circuits import Frozen, Intervention, Targets, agreement, constrain

RESAMPLES = 500
"""Resamples of the bootstrap over features."""
PREDICTIONS = {
  'constrained': 'direct',
  'semi-free': 'total',
  'iterative': 'total',
  'semi-free by edges': 'direct',
}
"""Predicted change that each measurement is compared with."""


def measure_effects(
  subject: Subject,
  dictionary: Dictionary,
  frozen: Frozen,
  targets: Targets,
  chosen: dict[str, Any],
) -> dict[str, Any]:
  """Changes of all targets by the removal of each chosen feature, [features, targets], keyed by set and measurement.

  'iterative' is None for neurons, whose activations are those of the model.
  """
  do = Intervention(subject.model.apply, subject.model.params, frozen)
  again = hasattr(dictionary.replaced, 'reconstruct')
  found: dict[str, Any] = {}
  for name, features in chosen.items():
    changes: dict[str, list] = {'constrained': [], 'semi-free': [], 'iterative': []}
    for index in features['feature']:
      remove = {index: 0.0}
      changes['constrained'].append(constrain(frozen, remove, targets).tolist())
      changes['semi-free'].append(do.semi_free(remove, targets).tolist())
      if again:
        changes['iterative'].append(do.iterative(remove, targets, dictionary.replaced).tolist())
    found[name] = {key: values or None for key, values in changes.items()}
  return found


def compare(chosen: dict[str, Any], measured: dict[str, Any], seed: int) -> dict[str, Any]:
  """Agreement of predictions with measurements on the likeliest output, keyed by set and measurement."""
  found: dict[str, Any] = {}
  for name, features in chosen.items():
    found[name] = {}
    for kind, prediction in PREDICTIONS.items():
      values = measured[name][kind.removesuffix(' by edges')]
      if values is not None and len(values) > 1:
        predicted, changes = (np.array(x)[:, 0] for x in (features[prediction], values))
        found[name][kind] = agree(predicted, changes, seed)
  return found


def agree(predicted: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, Any]:
  """Rank correlation and share of equal signs, each as [value, standard error], and the slope through 0.

  The standard errors are those of a bootstrap over features.
  """
  random = np.random.default_rng(seed)
  whole, parts = agreement(predicted, measured), []
  for _ in range(RESAMPLES):
    index = random.integers(0, len(predicted), len(predicted))
    one = agreement(predicted[index], measured[index])
    parts.append((one.spearman, one.signs))
  spread = np.nanstd(np.array(parts), axis=0) if np.isfinite(whole.spearman) else (np.nan, np.nan)
  size = float(predicted @ predicted)
  return {
    'n': len(predicted),
    'spearman': [whole.spearman, float(spread[0])],
    'signs': [whole.signs, float(spread[1])],
    'slope': float(predicted @ measured) / size if size else float('nan'),
    'largest_difference': float(np.abs(predicted - measured).max()),
  }
