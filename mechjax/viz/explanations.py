"""Scores of many latents by explainer and control, on matplotlib axes and as SVG for a page.

    strip(ax, scores, scorer='simulation', title=...)
    page.section(title, text, strip_svg(scores, scorer='simulation'))

In a strip plot each point is a latent, in a column for each explainer and control, with the mean and its standard
error. A dashed line across the columns of an explainer is the mean of its shuffled twin: what lies above it, the
explanation says about this latent and not about any.

Sharp edge: undefined scores have no point, and are counted below their column.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from mechjax.autointerp.record import Control, Score
from mechjax.viz import charts, curves, logs
from mechjax.viz.logs import ChartError, LinearAxis
from mechjax.viz.predictions import label, list_kinds, show_text

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_COLOURS = {'own': 0, 'shuffled': 6, 'table': 4, 'table_shuffled': 6}
"""Colour of each control, as an index into `curves.COLOURS` and the colours of a page."""
_SPREAD = 0.26
"""Largest distance of a point from the middle of its column."""
_LONGEST = 18
"""Longest name of an explainer below a column, in characters."""


def strip(
  ax: Axes, scores: Iterable[Score], *, scorer: str, title: str, ylabel: str = 'score'
) -> None:
  """Draws the scores by one scorer.

  Args:
    ax: where to draw.
    scores: scores; those by other scorers are left out.
    scorer: name of the scorer.
    title: title of the axes.
    ylabel: the score, with its unit.

  Raises:
    ChartError: no score by this scorer, or none that is defined.
  """
  columns, y = _make_columns(scores, scorer)
  for column in columns:
    colour = curves.COLOURS[_COLOURS[column.control]]
    ax.plot(
      column.xs, column.values, 'o', color=colour, markersize=3.6, alpha=0.5, markeredgewidth=0
    )
    if column.values.size:
      ax.errorbar(
        column.place, column.mean, column.error, color=charts.INK, marker='D', markersize=5,
        capsize=4, linewidth=1.4, zorder=3,
      )  # fmt: skip
  for left, right, height in _make_lines(columns):
    ax.plot([left, right], [height, height], color=charts.INK, linewidth=1, linestyle=(0, (4, 3)))
  x = _Slots(-0.6, len(columns) - 0.4)
  logs.style_axes(ax, x, y, title=title, xlabel='', ylabel=ylabel)
  names = ['\n'.join([*map(charts.make_legible, c.names), c.count]) for c in columns]
  ax.set_xticks(range(len(columns)), names)
  for text in ax.get_xticklabels():
    text.set_parse_math(False)
  ax.grid(visible=False, axis='x')
  ax.axhline(0, color=charts.INK, linewidth=0.9)


def strip_svg(scores: Iterable[Score], *, scorer: str, ylabel: str = 'score') -> str:
  """Draws the same as SVG for a page; points show their latents as tooltips. See `strip`."""
  columns, y = _make_columns(scores, scorer)
  x = _Slots(-0.6, len(columns) - 0.4)
  width = logs.LEFT + 24 + 128 * max(len(columns), 3)
  frame = logs.PlotFrame(x, y, '', ylabel, width=width, margin=24)
  floor = frame.place(x.low, 0.0)[1]
  parts = [f'<path class="diagonal" d="M{logs.LEFT} {floor:.1f}H{frame.right}"/>']
  parts += [_draw_column(column, frame) for column in columns]
  for left, right, height in _make_lines(columns):
    (a, b), (c, _) = frame.place(np.array([left, right]), np.array([height, height]))
    parts.append(f'<path class="diagonal" stroke-dasharray="5 4" d="M{a:.1f} {b:.1f}H{c:.1f}"/>')
  return frame.render(''.join(parts))


# --- columns of a strip plot -----------------------------------------------------------------------------------


class _Slots(LinearAxis):
  """An axis of columns, whose labels are drawn by the caller."""

  @property
  def ticks(self) -> list[float]:
    return []


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
  place: int
  method: str
  control: Control
  latents: list[int]
  values: Float64[np.ndarray, ' n']
  n_undefined: int

  @property
  def xs(self) -> Float64[np.ndarray, ' n']:
    """Places of the points: neighbours in height are moved apart, the same way in every run."""
    shift = np.zeros(len(self.values))
    shift[np.argsort(self.values, kind='stable')] = np.arange(len(self.values)) * 0.618034 % 1 - 0.5
    return self.place + 2 * _SPREAD * shift

  @property
  def mean(self) -> float:
    return float(self.values.mean())

  @property
  def error(self) -> float:
    """Standard error of the mean; 0 for a single value."""
    n = len(self.values)
    return float(self.values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0

  @property
  def names(self) -> list[str]:
    shuffled = ', shuffled'
    name = show_text(label(self.method, self.control).removesuffix(shuffled))
    short = name if len(name) <= _LONGEST else f'{name[: _LONGEST - 1]}…'
    return [short, shuffled[2:] if self.control.endswith('shuffled') else '']

  @property
  def count(self) -> str:
    undefined = f', {self.n_undefined} NaN' if self.n_undefined else ''
    return f'n = {len(self.values)}{undefined}'

  @property
  def group(self) -> str:
    """Columns with one shuffled twin."""
    return 'table' if self.control.startswith('table') else f'method {self.method}'


def _make_columns(scores: Iterable[Score], scorer: str) -> tuple[list[_Column], LinearAxis]:
  own = [score for score in scores if score.scorer == scorer]
  if not own:
    raise ChartError(f'no score by {scorer!r}')
  columns = []
  for place, (method, control) in enumerate(list_kinds(own)):
    here = [s for s in own if (s.method, s.control) == (method, control)]
    defined = [s for s in here if not math.isnan(s.value)]
    values = np.array([s.value for s in defined], float)
    latents = [int(s.latent) for s in defined]
    columns.append(
      _Column(place, method, control, latents, values, len(here) - len(defined))
    )  # fmt: skip
  drawn = np.concatenate([column.values for column in columns])
  if not drawn.size:
    raise ChartError(f'all scores by {scorer!r} are undefined')
  return columns, LinearAxis.from_values(drawn)


def _make_lines(columns: Sequence[_Column]) -> list[tuple[float, float, float]]:
  """Left and right end and height of the line at each shuffled mean."""
  lines = []
  for twin in columns:
    if twin.control in ('shuffled', 'table_shuffled') and twin.values.size:
      places = [column.place for column in columns if column.group == twin.group]
      lines.append((min(places) - 0.42, max(places) + 0.42, twin.mean))
  return lines


def _draw_column(column: _Column, frame: logs.PlotFrame) -> str:
  at = frame.place(column.xs, column.values)
  marks = [
    logs.mark('.', place, f'latent {latent}\n{column.names[0]} {column.names[1]}: {value:.3g}')
    for place, latent, value in zip(at, column.latents, column.values)
  ]
  middle = frame.place(column.place, frame.y.low)[0]
  colour = f'style="--c:var(--c{_COLOURS[column.control]})"'
  parts = [f'<g {colour} fill-opacity=".6">{"".join(marks)}</g>']
  if column.values.size:
    low, mid, high = (
      frame.place(column.place, column.mean + k * column.error)[1] for k in (-1, 0, 1)
    )
    note = f'mean {column.mean:.3g}, standard error {column.error:.2g}'
    caps = ''.join(f'M{middle - 6:.1f} {end:.1f}h12' for end in (low, high))
    path = f'<path class="line" d="M{middle:.1f} {low:.1f}V{high:.1f}{caps}"/>'
    parts.append(
      f'<g style="--c:var(--ink)">{path}{logs.mark("D", np.array([middle, mid]), note)}</g>'
    )
  for row, text in enumerate((*column.names, column.count)):
    kind = 'class="name" ' if row == 0 else ''
    at_text = f'x="{middle:.1f}" y="{frame.bottom + 18 + 16 * row}" text-anchor="middle"'
    parts.append(f'<text {kind}{at_text}>{html.escape(text)}</text>')
  return ''.join(parts)
