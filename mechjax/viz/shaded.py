"""Scatter plots of two quantities with a third one as shade, on matplotlib axes and as SVG for a page.

For measures of many neurons or latents: which of them are extreme in two ways, and whether these are also extreme in a
third. The shade is pale at the low end of a range and strong at its high end, in both colour schemes of a page and in
greyscale, and strong points are drawn last. Some points have their names next to them; on a page every point has its
numbers as a tooltip.

    points(ax, xs, ys, shades, title=..., xlabel='rho', ylabel='share', shade='|dH|, nats', span=(0, 0.1))
    page.section(title, text, points_svg(xs, ys, shades, notes=names, ...))

Sharp edge: shades outside the span are drawn as its ends; numbers without a place on an axis are an error.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechjax import extras
from mechjax.viz import charts, logs
from mechjax.viz.logs import Axis, ChartError, LinearAxis, LogAxis

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Numbers = Sequence[float] | np.ndarray
_PALE, _STRONG = '#c3cbd2', '#a50f36'
_SAMPLES = 5


def points(
  ax: Axes,
  xs: Numbers,
  ys: Numbers,
  shades: Numbers,
  *,
  title: str,
  xlabel: str,
  ylabel: str,
  shade: str,
  span: tuple[float, float],
  log: str = '',
  marked: Mapping[int, str] | None = None,
) -> None:
  """Draws shaded points.

  Args:
    ax: where to draw.
    xs, ys, shades: as many numbers.
    title: title of the axes.
    xlabel, ylabel, shade: the three quantities, with their units.
    span: shades of the pale and of the strong end.
    log: the axes that are logarithmic: '', 'x', 'y' or 'xy'; a linear axis contains zero.
    marked: names of points that are written next to them, keyed by index.

  Raises:
    ChartError: different numbers of values, values that have no place on an axis, a span without length.
  """
  x, y, weight, axes = _check_points(xs, ys, shades, span, log)
  order = np.argsort(weight, kind='stable')
  colours = extras.require('matplotlib.colors', 'viz').LinearSegmentedColormap.from_list(
    '', [_PALE, _STRONG]
  )
  image = ax.scatter(
    x[order], y[order], c=(span[0] + weight * (span[1] - span[0]))[order], cmap=colours,
    vmin=span[0], vmax=span[1], s=12, linewidths=0, clip_on=False, zorder=2,
  )  # fmt: skip
  for i, name in (marked or {}).items():
    ax.annotate(
      charts.make_legible(name), (x[i], y[i]), (4, 2), textcoords='offset points', fontsize=7,
      color=charts.INK, parse_math=False, zorder=3,
    )  # fmt: skip
  logs.style_axes(ax, *axes, title=title, xlabel=xlabel, ylabel=ylabel)
  assert ax.figure is not None
  bar = ax.figure.colorbar(image, ax=ax, fraction=0.035, pad=0.02)
  bar.set_label(shade, fontsize=9, color=charts.INK)
  bar.ax.tick_params(colors=charts.INK, labelsize=8)
  bar.outline.set_visible(False)


def points_svg(
  xs: Numbers,
  ys: Numbers,
  shades: Numbers,
  *,
  xlabel: str,
  ylabel: str,
  shade: str,
  span: tuple[float, float],
  notes: Sequence[str],
  log: str = '',
  marked: Mapping[int, str] | None = None,
) -> str:
  """Draws the same as SVG for a page.

  Args:
    notes: a name for each point, shown in its tooltip.
    Others: as for `points`.

  Returns:
    The HTML.

  Raises:
    ChartError: as `points`; or another number of notes.
  """
  x, y, weight, axes = _check_points(xs, ys, shades, span, log)
  if len(notes) != len(x):
    raise ChartError(f'{len(notes)} notes for {len(x)} points')
  frame = logs.PlotFrame(*axes, xlabel, ylabel, width=760, margin=150)
  at, parts = frame.place(x, y), []
  for i in np.argsort(weight, kind='stable'):
    number = logs.number(float(np.asarray(shades, float)[i]))
    note = f'{frame.describe(notes[i], float(x[i]), float(y[i]))}\n{shade}: {number}'
    parts.append(_dot(at[i], weight[i], note))
  for i, name in (marked or {}).items():
    place = f'x="{at[i, 0] + 5:.1f}" y="{at[i, 1] - 4:.1f}"'
    parts.append(f'<text class="name" {place}>{html.escape(name)}</text>')
  return frame.render(''.join([*parts, *_draw_scale(frame, shade, span)]))


def _draw_scale(frame: logs.PlotFrame, shade: str, span: tuple[float, float]) -> list[str]:
  """Draws the shades with their numbers, on the right of the picture."""
  left = frame.right + 24
  parts = [f'<text x="{left - 6}" y="{logs.TOP + 14}">{html.escape(shade)}</text>']
  for i, weight in enumerate(np.linspace(1, 0, _SAMPLES)):
    height = logs.TOP + 38 + 22 * i
    number = logs.number(float(f'{span[0] + weight * (span[1] - span[0]):.3g}'))
    parts.append(_dot(np.array([left, height]), weight, number))
    parts.append(f'<text x="{left + 14}" y="{height + 4}">{number}</text>')
  return parts


def _dot(at: np.ndarray, weight: float, note: str) -> str:
  mark = logs.mark('.', at, note, 'shaded')
  return f'<g style="--w:{weight:.2f}">{mark}</g>'


def _check_points(
  xs: Numbers, ys: Numbers, shades: Numbers, span: tuple[float, float], log: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Axis, Axis]]:
  """Coordinates, weights of the strong end from 0 to 1, and the two axes."""
  if log not in ('', 'x', 'y', 'xy'):
    raise ChartError(f'log={log!r}', hint="the axes that are logarithmic: '', 'x', 'y' or 'xy'")
  if not span[0] < span[1]:
    raise ChartError(f'span={span!r} of the shades has no length')
  x, y, third = (np.asarray(values, float) for values in (xs, ys, shades))
  if not x.shape == y.shape == third.shape or x.ndim != 1 or not x.size:
    raise ChartError(f'{x.size} xs, {y.size} ys and {third.size} shades; a point needs one of each')
  for name, values in (('x', x), ('y', y), ('shade', third)):
    bad = np.flatnonzero(~np.isfinite(values) | ((name in log) & (values <= 0)))
    if bad.size:
      raise ChartError(
        f'{name} is {values[bad[0]]} at point {bad[0]}',
        cause='infinite and missing values have no place on an axis, and a logarithmic axis has no zero',
        hint='leave the point out',
      )
  kinds: list[type[LogAxis] | type[LinearAxis]] = [
    LogAxis if name in log else LinearAxis for name in 'xy'
  ]
  axes = kinds[0].from_values(x), kinds[1].from_values(y)
  return x, y, ((third - span[0]) / (span[1] - span[0])).clip(0, 1), axes
