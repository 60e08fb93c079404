"""Results of patching as pictures: heat maps of the effects, and bars of the largest.

In a notebook:

    patching.picture(effects, tokens, 'heads.png')
    page.page(title, lead, patching.sections(effects, tokens), footer)
    patching.picture(effects, tokens, 'layer9.png', View('contribution', layer=9))

`cuts` defines the heat maps and their cells; `draw` and `table` are the parts, for comparisons of
results. `searches` draws the evaluation of methods that find the largest effects without measuring all
of them.

Sharp edge: a single cell or bar far beyond the others would make them pale. It is cut, framed or
hatched, keeps its number, and the scale says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechjax.patching import Effects, PatchingError
from mechjax.viz import charts, cuts, page, scale
from mechjax.viz.cuts import DEFAULT, Map, Tokens, View

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def draw(ax: Axes, shown: Map, limit: float) -> Any:
  """Draws a map on matplotlib axes; returns the image for `charts.colour_scale`."""
  return charts.heatmap(
    ax, shown.values, rows=shown.rows, columns=shown.columns, title=shown.title,
    xlabel=shown.axes[1], ylabel=shown.axes[0], limit=limit, signed=shown.signed,
    number=scale.pick_format(limit),
  )  # fmt: skip


def table(shown: Map, limit: float) -> str:
  """Makes a map as HTML, without its scale."""
  return page.heatmap(
    shown.values.tolist(), shown.notes, rows=shown.rows, columns=shown.columns, title=shown.reduction,
    axes=shown.axes, limit=limit, number=scale.pick_format(limit),
  )  # fmt: skip


def rank(
  effects: Effects, tokens: Tokens = None, view: View = DEFAULT
) -> tuple[list[str], list[float]]:
  """Ranks the `view.k` nodes of largest magnitude, largest first.

  Args:
    effects: measured effects.
    tokens: one for each position, or None.
    view: selection and presentation.

  Returns:
    Their labels, and their values.

  Raises:
    PatchingError: the number of tokens or values is not that of positions or nodes; no value at all.
  """
  cuts.check_tokens(effects, tokens)
  values, _, _ = cuts.select_values(effects, view)
  if view.layer is not None:
    values = np.where(effects.nodes.table[:, 1] == view.layer, values, np.nan)
  order = np.argsort(-np.abs(values), kind='stable')[: view.k]  # NaN comes last
  order = order[~np.isnan(values[order])]
  if not order.size:
    raise PatchingError(f'none of {len(values)} nodes has a value', where=f'layer {view.layer}')
  return effects.nodes[order].labels(tokens), values[order].tolist()


def picture(
  effects: Effects, tokens: Tokens, path: str | os.PathLike, view: View = DEFAULT
) -> None:
  """Writes heat maps and ranked bars as one PNG.

  Args:
    effects: measured effects.
    tokens: one for each position, or None.
    path: the file.
    view: selection and presentation.

  Raises:
    PatchingError: as `cuts.maps`.
    MissingExtraError: matplotlib is not installed.
  """
  found = cuts.maps(effects, tokens, view)
  limit = view.limit or cuts.common_limit(found)
  bars = _bars(effects, tokens, view)
  bands = _bands(found)
  wide = max(sum(len(m.columns) for m in band) for band in bands)
  heights = [0.8, *(_height(band) for band in bands), 0.9 + 0.2 * len(bars['labels'])]
  fig = charts.figure(min(max(8.5, 2.5 + 0.36 * wide), 24.0), sum(heights))
  fig.suptitle(charts.make_legible(effects.title), fontsize=12, fontweight='bold', parse_math=False)
  parts: Any = fig.subfigures(len(heights), 1, height_ratios=heights)
  images: list[Any] = []
  for part, band in zip(parts[1:-1], bands, strict=True):
    widths = [len(m.columns) for m in band]
    rest = [wide - sum(widths)] * (wide > sum(widths))  # equal widths of cells in all bands
    axes = part.subplots(1, len(widths + rest), width_ratios=widths + rest, squeeze=False)[0]
    for ax in axes[len(band) :]:
      ax.set_axis_off()
    images += [draw(ax, m, limit) for ax, m in zip(axes, band)]
  cells = np.concatenate([m.values.ravel() for m in found])
  extend = ('neither', 'min', 'max', 'both')[(cells < -limit).any() + 2 * (cells > limit).any()]
  charts.colour_scale(parts[0].subplots(), images[0], _legend(found, limit), extend=extend)
  charts.bars(parts[-1].subplots(), **bars, title=_heading(view), xlabel=_unit(found, bars))
  charts.save(fig, Path(path))


def sections(effects: Effects, tokens: Tokens = None, view: View = DEFAULT) -> list[str]:
  """Heat maps and ranked bars as sections for `page.page`.

  Args:
    effects: measured effects.
    tokens: one for each position, or None.
    view: selection and presentation.

  Returns:
    The HTML of each grid's maps, and of the bars.

  Raises:
    PatchingError: as `cuts.maps`.
  """
  found = cuts.maps(effects, tokens, view)
  limit = view.limit or cuts.common_limit(found)
  bars = _bars(effects, tokens, view)
  parts = []
  for band in _bands(found):
    text = f'{effects.title}. Hover over a cell to see its number and its node.'
    if view.reduce == 'sum' and any(m.reduction for m in band):
      text += ' A sum of effects of single nodes is not the effect of patching them together.'
    legend = page.ramp(
      limit, signed=band[0].signed, unit=_legend(band, limit), number=scale.pick_format(limit)
    )
    body = page.side_by_side(table(m, limit) for m in band) + legend
    parts.append(page.section(band[0].name, text, body))
  body = page.bars(**bars, unit=_unit(found, bars))
  return [*parts, page.section(_heading(view), f'{effects.title}.', body)]


def _bands(found: Sequence[Map]) -> list[list[Map]]:
  """The maps of each grid."""
  return [[m for m in found if m.grid == number] for number in sorted({m.grid for m in found})]


def _bars(effects: Effects, tokens: Tokens, view: View) -> dict[str, Any]:
  labels, values = rank(effects, tokens, view)
  limit = scale.limit(values)
  number = scale.pick_format(min(limit, abs(values[0])), digits=3)
  return {'labels': labels, 'values': values, 'limit': limit, 'number': number}


def _unit(found: Sequence[Map], bars: dict[str, Any]) -> str:
  return found[0].unit + ('; hatched: cut' if math.isfinite(bars['limit']) else '')


def _heading(view: View) -> str:
  return 'The largest nodes' + ('' if view.layer is None else f' of layer {view.layer}')


def _height(band: Sequence[Map]) -> float:
  """Height in inches of maps side by side: rows, the longest label below, title and axis."""
  rows = max(len(m.rows) for m in band)
  label = max(len(column) for m in band for column in m.columns)
  return 0.85 + 0.19 * rows + 0.07 * label


def _legend(found: Sequence[Map], limit: float) -> str:
  """The legend of the colours of these maps."""
  parts, beyond = [found[0].unit], sum(int((np.abs(m.values) > limit).sum()) for m in found)
  if beyond:
    ends = f'{"±" if found[0].signed else ""}{scale.pick_format(limit).format(limit)}'
    parts.append(f'framed: beyond {ends}, {beyond} cell{"s" * (beyond > 1)}')
  if any(np.isnan(m.values).any() for m in found):
    parts.append('hatched: no value')
  return '; '.join(parts)
