"""The charts of the experiment, as arguments of the functions that draw them, from the plain results alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.circuits.tables import SCORES, average_curves
from mechjax.viz.curves import Points

Curves = tuple[str, dict[str, Any]]
"""Explanation, and arguments of `curves.lines`."""
Scatter = tuple[str, dict[str, Any]]
"""Explanation, and arguments of `scatter.scatter`."""


def list_curves(results: dict[str, Any]) -> dict[str, Curves]:
  """Charts of curves, keyed by title."""
  found: dict[str, Curves] = {}
  fvu: dict[str, Points] = {
    label: (
      np.arange(len(one['evaluation']['fvu']), dtype=float),
      np.array(one['evaluation']['fvu']),
    )
    for label, one in results['dictionaries'].items()
    if one['evaluation']
  }
  if fvu:
    given = {'curves': fvu, 'xlabel': 'layer', 'ylabel': 'FVU', 'linear': 'xy'}
    found['FVU by layer'] = (
      'Fraction of variance of the MLP output that is not reconstructed.',
      given,
    )
  points = average_curves(results)
  for name in SCORES:
    lines: dict[str, Points] = {
      label: ([float(n) for n in curve], [point[name][0] for point in curve.values()])
      for label, curve in points.items()
      if len(curve) > 1
    }
    if lines:
      given = {'curves': lines, 'xlabel': 'features kept', 'ylabel': name, 'linear': 'y'}
      text = 'Mean over prompts; features that are not kept count as errors.'
      found[f'{name.capitalize()} by number of features'] = text, given
  return found


def list_scatters(results: dict[str, Any]) -> dict[str, Scatter]:
  """Charts of predicted and measured changes, keyed by title."""
  found: dict[str, Scatter] = {}
  for label, one in results['dictionaries'].items():
    for kind in ('semi-free', 'iterative'):
      pairs = [
        (predicted[0], measured[0])
        for prompt in one['prompts'].values()
        for predicted, measured in zip(
          prompt['chosen']['top']['total'], prompt['measured']['top'][kind] or ()
        )
      ]
      if pairs:
        xs, ys = np.array(pairs).T
        given = {
          'xs': xs,
          'ys': ys,
          'xlabel': 'predicted change of the logit',
          'ylabel': 'measured',
        }
        text = (
          'One dot for each removed feature of all prompts; on the line, the prediction is right.'
        )
        found[f'{label}: {kind}'] = text, given
  return found
