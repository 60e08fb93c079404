"""Results as tables, as JSON, as one picture and as one page.

Methods that change the first positions and methods that change every position have separate frontiers: the loss after
the changed positions and the loss under the edit are different quantities.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.steering.measure import Measured
from mechjax import files
from mechjax.steering import FrontierPoint, success_at_equal_loss
from mechjax.viz import charts, curves, page

SUCCESS = 'share of rollouts with a word of the concept'
KINDS = {
  'after': 'loss added after the changed positions, nats per token',
  'under': 'loss added under the edit, nats per token',
}
NAMES = {'after': 'first positions', 'under': 'every position'}
LOSSES = (0.05, 0.1, 0.2, 0.4)
"""Increases of the loss at which methods are compared, in nats per token."""
LEAST = 1e-4
"""Smaller increases are drawn at this one, because a logarithmic axis has no zero."""


def write(found: Sequence[Measured], title: str, command: str, out: Path) -> None:
  """Prints the tables, and writes `steering.json`, `steering.png` and `steering.html`."""
  print(comparison(found), table(found), sep='\n\n')
  rows = {
    m.concept: {
      'plain': [m.plain.count, m.plain.total],
      'asked': [m.asked.count, m.asked.total],
      'frontiers': {k: [dataclasses.asdict(p) for p in v] for k, v in m.frontiers.items()},
      'lengths': {k: v.tolist() for k, v in m.lengths.items()},
      'tokens': m.tokens,
    }
    for m in found
  }
  both = json.dumps({'command': command, 'concepts': rows})
  files.write_json(out / 'steering.json', json.loads(both, parse_constant=lambda _: None))
  picture(found, title, out / 'steering.png')
  (out / 'steering.html').write_text(document(found, title, command))
  print(f'wrote {out}/steering.json, {out}/steering.png and {out}/steering.html')


def comparison(found: Sequence[Measured]) -> str:
  """Largest success of all methods, and success at equal loss, as Markdown.

  A cell is empty where the coefficients do not reach a loss: vectors of the first positions often lose their effect
  before they add any. The rows without an edit add no loss.
  """
  heads = ' | '.join(f'at +{loss:g}' for loss in LOSSES)
  lines = [f'| concept | changed | method | largest | {heads} |', '|---' * (4 + len(LOSSES)) + '|']
  for m in found:
    for share, name in ((m.plain, 'nothing'), (m.asked, 'a sentence before the prompt')):
      lines.append(f'| {m.concept} | {name} |  | {share} |{" |" * len(LOSSES)}')
    for kind, changed in NAMES.items():
      points = of_kind(m, kind)
      at = [success_at_equal_loss(points, loss) for loss in LOSSES] if points else []
      for name in points:
        cells = ['' if math.isnan(x[name]) else f'{x[name]:.2f}' for x in at]
        lines.append(
          f'| {m.concept} | {changed} | {name} | {_largest(points[name])} | {" | ".join(cells)} |'
        )
  return '\n'.join(lines)


def _largest(points: Sequence[FrontierPoint]) -> str:
  """Largest success of a method, with its interval, its coefficient and the loss that it adds."""
  p = max(points, key=lambda p: (p.success, -p.loss_increase))
  low, high = p.interval
  return f'{p.success:.2f} [{low:.2f}, {high:.2f}] at c = {p.coefficient:g}, {p.loss_increase:+.3f}'


def table(found: Sequence[Measured]) -> str:
  """All points, as Markdown."""
  lines = [
    '| concept | method | c | success | 95 % interval | loss added | counted | distinct-2 |',
    '|---' * 8 + '|',
  ]
  for m in found:
    for method, points in m.frontiers.items():
      for p in points:
        low, high = p.interval
        lines.append(
          f'| {m.concept} | {method} | {p.coefficient:g} | {p.success:.2f} | {low:.2f} to {high:.2f} | '
          f'{p.loss_increase:+.4f} | {p.loss_at} | {p.distinct_2:.2f} |'
        )
  return '\n'.join(lines)


def picture(found: Sequence[Measured], title: str, path: Path) -> None:
  """Draws the frontiers and the lengths of the vectors, three axes for each concept."""
  panels = [panel for m in found for panel in _panels(m)]
  fig = charts.figure(9.6, 3.6 * len(panels))
  for ax, (name, _, arguments) in zip(np.ravel(fig.subplots(len(panels), 1)), panels):
    curves.lines(ax, title=f'{title}: {name}', **arguments)
  charts.save(fig, path)


def document(found: Sequence[Measured], title: str, command: str) -> str:
  """Writes the results as one HTML page."""
  sections = [
    page.section(name, text, curves.lines_svg(**arguments))
    for m in found
    for name, text, arguments in _panels(m)
  ]
  lead = (
    'Edits of the residual stream towards a concept, at several strengths: how often rollouts have a word of the '
    'concept, and what the same edit costs on unrelated text. Higher and further left is better.'
  )
  return page.page(f'Steering of {title}', lead, sections, command)


def of_kind(m: Measured, kind: str) -> dict[str, list[FrontierPoint]]:
  """The methods whose loss is of one kind."""
  return {name: points for name, points in m.frontiers.items() if points[0].loss_at == kind}


def _panels(m: Measured) -> list[tuple[str, str, dict[str, Any]]]:
  """Title, text and arguments of each chart of a concept."""
  panels = [
    (
      f'{m.concept}, edits of {NAMES[kind]}',
      f'Each mark is a coefficient; an increase under {LEAST:g} nats is drawn at {LEAST:g}. With the concept in the '
      f'prompt and no edit: {m.asked}. Hover over a mark for its interval and its share of different pairs of words.',
      _frontier_arguments(m, points, KINDS[kind]),
    )
    for kind in NAMES
    if (points := of_kind(m, kind))
  ]
  text = 'Vector of activation addition by position, before and after the latents of padding are projected out.'
  return [*panels, (f'{m.concept}, length of the vector', text, _length_arguments(m))]


def _frontier_arguments(
  m: Measured, methods: dict[str, list[FrontierPoint]], xlabel: str
) -> dict[str, Any]:
  """Curves in the order of the loss, and the share without an edit as a bound."""
  drawn, notes = {}, {}
  for name, points in methods.items():
    shown = sorted(points, key=lambda p: p.loss_increase)
    drawn[name] = ([max(p.loss_increase, LEAST) for p in shown], [p.success for p in shown])
    notes[name] = [
      f'c = {p.coefficient:g}, {p.interval[0]:.2f} to {p.interval[1]:.2f}, distinct-2 {p.distinct_2:.2f}'
      for p in shown
    ]
  losses = [x for xs, _ in drawn.values() for x in xs]
  bound = 'without an edit', ([min(losses), max(losses)], [m.plain.share] * 2)
  return {
    'curves': drawn, 'notes': notes, 'xlabel': xlabel, 'ylabel': SUCCESS, 'bound': bound, 'linear': 'y',
  }  # fmt: skip


def _length_arguments(m: Measured) -> dict[str, Any]:
  position = np.arange(len(m.tokens))
  return {
    'curves': {name: (position, lengths) for name, lengths in m.lengths.items()},
    'xlabel': f'position of {" ".join(repr(t) for t in m.tokens)}',
    'ylabel': 'length, in units of the stream',
    'linear': 'xy',
  }
