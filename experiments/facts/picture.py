"""The results as pictures: accuracy by layer next to the original's, paths, excess, and local processing.

The same charts are panels of one PNG and sections of the page. The original study (Nanda et al. 2023, Fact Finding) is
of Pythia 2.8B, whose extraction head is in layer 16 of 32: layers are given as shares of the layer of the extraction
head, so that the two models have one axis.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechjax.viz import charts, curves, page, scatter

if TYPE_CHECKING:
  from matplotlib.axes import Axes

ORIGINAL = {
  'Pythia 2.8B: prompt': ([0.0, 6 / 16, 1.0], [0.50, 0.90, 0.98]),
  'Pythia 2.8B: without late attention': ([6 / 16, 15 / 16], [0.85, 0.94]),
}
"""Values that the original study states: about 0.5 from embeddings, 90 % after layer 6, 98 % at the head's layer 16;
with attention from layer 2 on ablated and the name alone, 85 % at layer 6 and 94 % at layer 15."""

GROUPS = {
  'all, known, 2 tokens': 'name alone: all widely known names',
  'all, rarer, 2 tokens': 'name alone: all rarer names',
}
"""Groups of names with a curve of their own."""

Panel = tuple[str, str, Callable[['Axes'], None], str]
"""Title, explanation, function that draws it, and the same as HTML."""


def draw(results: dict[str, Any], directory: Path) -> list[Path]:
  """Writes all charts as `facts.png`, and the accuracy by layer alone as `lookup.png` if it was measured."""
  panels = make_panels(results)
  rows = -(-len(panels) // 2)
  fig = charts.figure(19, 4.6 * rows)
  axes = np.ravel(fig.subplots(rows, 2))
  for ax, (_, _, fill, _) in zip(axes, panels):
    fill(ax)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  files = [directory / 'facts.png']
  charts.save(fig, files[0])
  if 'lookup' in results['parts']:
    fig = charts.figure(10.5, 5)
    chart_curves(results['parts']['lookup'])[2](fig.subplots())
    files.append(directory / 'lookup.png')
    charts.save(fig, files[1])
  return files


def sections(results: dict[str, Any]) -> list[str]:
  """The charts as sections of a page."""
  return [page.section(title, text, body) for title, text, _, body in make_panels(results)]


def make_panels(results: dict[str, Any]) -> list[Panel]:
  """Charts of the parts that were measured."""
  parts, made = results['parts'], []
  if 'lookup' in parts:
    made += [chart_curves(parts['lookup']), chart_paths(parts['lookup'])]
  if 'hashing' in parts:
    made.append(chart_excess(parts['hashing']))
  if 'local' in parts:
    made += [chart_contexts(parts['local']), chart_kinds(parts['local'])]
  if 'extract' in parts:
    made.insert(0, chart_direct(parts['extract']))
  if 'relations' in parts:
    made.insert(0, chart_relations(parts['relations']))
  return made


def make_lines(title: str, text: str, **arguments: Any) -> Panel:
  """A panel of curves."""
  return (
    title,
    text,
    lambda ax: curves.lines(ax, title=title, **arguments),
    curves.lines_svg(**arguments),
  )


def make_bars(title: str, text: str, labels: list[str], values: list[float], unit: str) -> Panel:
  """A panel of bars."""
  return (
    title,
    text,
    lambda ax: charts.bars(ax, labels, values, title=title, xlabel=unit),
    page.bars(labels, values, unit=unit),
  )


def chart_relations(part: dict[str, Any]) -> Panel:
  """Shares of facts with the right answer on top."""
  labels, values = [], []
  for name, shots in part['relations'].items():
    for shot, one in shots.items():
      if one['n']:
        labels.append(f'{name}, {shot} ({one["n"]})')
        values.append(one['top'][0] / one['top'][1])
  unit = 'share of facts with the right answer on top of the vocabulary'
  return make_bars(
    'Right answers by relation', 'In parentheses: number of facts.', labels, values, unit
  )


def chart_direct(part: dict[str, Any]) -> Panel:
  """The largest direct effects."""
  rows = part['senders'][:12]
  labels = [name for name, *_ in rows]
  values = [exact if exact is not None else first for _, first, _, exact, _ in rows]
  text = 'Exact where it was measured, otherwise to first order. Negative: the head or MLP supports the right sport.'
  return make_bars(
    'Direct effects on the sport', text, labels, values, 'change of the logit difference'
  )


def chart_curves(part: dict[str, Any]) -> Panel:
  """Accuracy by layer of all conditions, with the original's values."""
  top = max(part['head'][0], 1)
  drawn: dict[str, Any] = {}
  embeddings = part['curves']['embeddings']['mean'][0]
  for name, one in part['curves'].items():
    if name != 'embeddings':
      mean = one['mean'][:top]
      label = f'name alone, {name}' if name.startswith('without') else name
      drawn[label] = ([0.0, *((np.arange(len(mean)) + 1) / top)], [embeddings, *mean])
  for name, label in GROUPS.items():
    if name in part['groups']['rows']:
      mean = part['groups']['rows'][name]['mean'][:top]
      drawn[label] = ((np.arange(len(mean)) + 1) / top, mean)
  trained = part['trained']
  for where in ('prompt', 'name alone'):
    mean = trained[where]['mean'][1 : top + 1]
    drawn[f'trained probe, {where}'] = ((np.arange(len(mean)) + 1) / top, mean)
  text = (
    f'The stream before each layer, as a share of the layer of the head that reads it ({part["head"][0]}.'
    f'{part["head"][1]}; 16.20 in Pythia 2.8B, whose values are those that the study states). At 0: the sum of the '
    f'token embeddings. Chance is a third.'
  )
  return make_lines(
    'Accuracy of the sport by layer', text, curves=drawn | ORIGINAL,
    xlabel='layer / layer of the extraction head', ylabel='share of names', linear='xy',
  )  # fmt: skip


def chart_paths(part: dict[str, Any]) -> Panel:
  """Increase of the loss without each path."""
  paths = part['paths']
  base, n = paths['loss']['effective'][0], paths['mlps']
  values = np.full((n, n), np.nan)
  for i, row in enumerate(paths['loss']['paths']):
    for j, cell in enumerate(row):
      if cell is not None:
        values[i, j] = cell[0] - base
  some = np.abs(values[np.isfinite(values)])
  limit = float(some.max()) if some.size and some.max() > 0 else 1.0
  names = [str(k) for k in range(n)]
  notes = [
    [f'MLP {i} to MLP {j}: {v:+.3f} nats' for j, v in enumerate(row)]
    for i, row in enumerate(values)
  ]
  title = 'Loss without a path between two MLPs'

  def fill(ax: Axes) -> None:
    charts.heatmap(
      ax, values, rows=names, columns=names, title=f'{title}, minus that of the effective model (nats)',
      xlabel='receiving MLP', ylabel='sending MLP', limit=limit, signed=True,
    )  # fmt: skip
    for i, j in np.argwhere(np.isfinite(values)):
      ink = 'white' if abs(values[i, j]) > 0.55 * limit else charts.INK
      ax.text(j, i, f'{values[i, j]:+.2f}', ha='center', va='center', fontsize=8, color=ink)

  body = page.heatmap(
    values.tolist(), notes, rows=names, columns=names, title='', axes=('from', 'to'), limit=limit
  )
  unit = 'increase of the loss over that of the effective model, nats'
  return title, 'A row is the sending MLP.', fill, body + page.ramp(limit, signed=True, unit=unit)


def chart_excess(part: dict[str, Any]) -> Panel:
  """The reading's excess of each name, against the excess that the neurons compute."""
  names = part['excess']['names']
  title = 'Excess of the reading, and excess that its neurons compute'
  labels = {'xlabel': 'excess of the reading', 'ylabel': 'computed by neurons that write it'}
  return (
    title,
    'Each dot is a name. On the diagonal, the neurons that write the sport compute the whole AND themselves.',
    lambda ax: scatter.scatter(ax, names['probe'], names['computed'], title=title, **labels),
    scatter.scatter_svg(names['probe'], names['computed'], **labels),
  )


def chart_contexts(part: dict[str, Any]) -> Panel:
  """Cosines by layer for several numbers of tokens."""
  median = np.array(part['kinds']['all']['median'])
  shuffled = np.array(part['kinds']['all']['shuffled'])
  layers = np.arange(len(median))
  ks = [k for k in (0, 1, 2, 4, 9) if k < median.shape[1]]
  drawn = {f'k = {k + 1}': (layers, median[:, k]) for k in ks}
  drawn['another token'] = (layers, shuffled[:, ks[-1]])
  return make_lines(
    'Local processing by layer', 'Median over all tokens.', curves=drawn, xlabel='layer',
    ylabel='centred cosine with the whole context', linear='xy',
  )  # fmt: skip


def chart_kinds(part: dict[str, Any]) -> Panel:
  """Cosines by layer for each kind of token."""
  k = min(4, len(part['kinds']['all']['median'][0]) - 1)
  drawn = {}
  for name, one in part['kinds'].items():
    median = np.array(one['median'])[:, k]
    drawn[f'{name} ({one["count"]})'] = (np.arange(len(median)), median)
  return make_lines(
    f'Local processing by kind of token, k = {k + 1}', 'In parentheses: number of tokens.',
    curves=drawn, xlabel='layer', ylabel='centred cosine with the whole context', linear='xy',
  )  # fmt: skip
