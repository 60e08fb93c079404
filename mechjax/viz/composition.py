"""Composition of heads: the largest pairs of each kind, and layers by layers, as sections and as a PNG.

    scores = measure_composition(weights)                           from mechjax.decomposition
    page.page(title, lead, sections(scores), footer)
    picture(scores, 'composition.png')

The heat map shows for each pair of layers the largest score of their heads, less the baseline of random matrices; the
largest score of many random pairs is above the baseline too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechjax.decomposition.composition import KINDS, CompositionScores
from mechjax.viz import charts, page, scale

NAMES = {'q': 'Q-composition', 'k': 'K-composition', 'v': 'V-composition'}
_TEXT = {'q': 'queries', 'k': 'keys', 'v': 'values'}
UNIT = 'largest score of two heads, less the baseline'


def sections(scores: CompositionScores, *, k: int = 12) -> list[str]:
  """Sections of a page, one for each kind of composition, with its `k` largest pairs of heads."""
  found = []
  for kind in KINDS:
    above = _reduce(scores, kind)
    labels, values = _rank(scores, kind, k)
    layers = [str(l) for l in range(len(above))]
    limit = _limit(above)
    notes = [
      [f'layer {u} reads layer {l}: {x:.4f}' for l, x in enumerate(row)]
      for u, row in enumerate(above)
    ]
    number = scale.pick_format(limit)
    map_ = page.heatmap(
      above.tolist(), notes, rows=layers, columns=layers, title='', axes=('reading layer', 'layer that is read'),
      limit=limit, number=number,
    )  # fmt: skip
    text = (
      f'The {_TEXT[kind]} of a head read the output of an earlier head. The baseline, a random rotation between '
      f'the two, is {scores.baseline:.4f}. Cells: largest score of two heads, less the baseline.'
    )
    legend = page.ramp(limit, signed=True, unit=UNIT, number=number)
    bars = page.bars(labels, values, unit='score of a pair, layer.head → layer.head')
    found.append(page.section(NAMES[kind], text, map_ + legend + bars))
  return found


def picture(scores: CompositionScores, path: str | os.PathLike, *, k: int = 12) -> None:
  """Writes the same as PNG.

  Raises:
    MissingExtraError: matplotlib is not installed.
  """
  L = len(scores.q)
  width = max(3.6, 1.4 + 0.22 * L)
  fig = charts.figure(3 * width, width + 1.0 + 0.22 * k)
  parts: Any = fig.subfigures(2, 1, height_ratios=[width, 1.0 + 0.22 * k])
  above, below = parts
  for ax, low, kind in zip(above.subplots(1, 3), below.subplots(1, 3), KINDS):
    reduced = _reduce(scores, kind)
    labels, values = _rank(scores, kind, k)
    limit, layers = _limit(reduced), [str(l) for l in range(L)]
    image = charts.heatmap(
      ax, reduced, rows=layers, columns=layers, title=NAMES[kind], xlabel='layer that is read', ylabel='reading layer',
      limit=limit, signed=True, number=scale.pick_format(limit),
    )  # fmt: skip
    above.colorbar(image, ax=ax, label=UNIT, fraction=0.05, pad=0.02)
    charts.bars(
      low, labels, values, title=f'largest pairs (baseline {scores.baseline:.3f})', xlabel='score'
    )
  charts.save(fig, Path(path))


def _reduce(scores: CompositionScores, kind: str) -> Float[np.ndarray, 'L L']:
  """Largest score of the heads of two layers less the baseline, [reading layer, layer that is read]."""
  found = scores.scores(kind).transpose(2, 0, 3, 1)
  largest = np.where(np.isnan(found), -np.inf, found).max((2, 3)) - scores.baseline
  return np.where(np.isinf(largest), np.nan, largest)


def _limit(values: Float[np.ndarray, 'L L']) -> float:
  finite = np.abs(values[np.isfinite(values)])
  return float(finite.max(initial=0.0)) or 1.0


def _rank(scores: CompositionScores, kind: str, k: int) -> tuple[list[str], list[float]]:
  top = scores.top(kind, k)
  labels = [f'{p.lower_layer}.{p.lower_head} → {p.upper_layer}.{p.upper_head}' for p in top]
  return labels, [p.score for p in top]
