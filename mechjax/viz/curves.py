"""Curves on logarithmic or linear axes, on matplotlib axes and as SVG for a page.

Methods are compared by curves that lie close together and often end in one point, so each differs
from its neighbours in colour, dash and mark, which keeps them distinct in greyscale too, and their
names are listed next to the picture in the vertical order of the curves. A bound below which no curve
can lie is dashed, in ink, without marks.

    lines(ax, {'AtP': (ks, costs)}, bound=('oracle', (ks, ks)), title=..., xlabel=..., ylabel=...)
    page.section(title, text, lines_svg({'AtP': (ks, costs)}, bound=..., xlabel=..., ylabel=...))

Where there are few points with names of their own, `notes` describes each of them. A word can mark the corner in which
good points would lie.

Sharp edge: a point that cannot be shown (infinite, missing, or zero on a logarithmic axis) raises an error and is not
skipped.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechjax.viz import charts, logs
from mechjax.viz.logs import Axis, ChartError, LinearAxis, LogAxis

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Points = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Xs that do not decrease and as many ys, all positive; on a linear axis, any numbers."""
Notes = Mapping[str, Sequence[str]]
"""A description of each point, keyed by the name of its curve."""

COLOURS = ('#2166ac', '#d1495b', '#1b7837', '#7b4fa3', '#a6611a', '#01798a', '#5d6874')
"""Colours on white paper; a page has them as --c0, --c1, ..., with lighter ones in dark mode."""

_DASHES: tuple[tuple[int, ...], ...] = ((), (9, 2, 2, 2), (2, 2), (9, 2, 2, 2, 2, 2))
_MARKS = 'os^Dv'


def lines(
  ax: Axes,
  curves: Mapping[str, Points],
  *,
  title: str,
  xlabel: str,
  ylabel: str,
  bound: tuple[str, Points] | None = None,
  linear: str = '',
  notes: Notes | None = None,
  corner: str = '',
) -> None:
  """Draws curves with their names next to the picture.

  Args:
    ax: where to draw.
    curves: points of each curve, keyed by its name.
    title: title of the axes.
    xlabel: name of the x axis, with its unit.
    ylabel: name of the y axis, with its unit.
    bound: name and curve of a lower bound of all curves.
    linear: the axes that are linear and contain zero: '', 'y' or 'xy'.
    notes: descriptions of the points, which only a page shows; with them every point has a mark.
    corner: label of the lower left corner, above zero.

  Raises:
    ChartError: points that cannot be shown on these axes.
  """
  drawn = _make_lines(curves, bound, linear, notes)
  x, y = _make_axes(drawn, linear)
  for line in drawn:
    ax.plot(
      line.xs, line.ys, color=line.colour, linestyle=(0, line.dashes) if line.dashes else '-',
      linewidth=1.5, marker=line.mark, markevery=line.marked, markersize=5.5,
      markeredgecolor='white', markeredgewidth=0.7, label=charts.make_legible(line.name),
    )  # fmt: skip
  logs.style_axes(ax, x, y, title=title, xlabel=xlabel, ylabel=ylabel)
  legend = ax.legend(
    loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=4.5,
    labelspacing=0.8,
  )  # fmt: skip
  for text in legend.get_texts():
    text.set(parse_math=False, color=charts.INK)
  if 'y' in linear:
    ax.axhline(0, color=charts.INK, linewidth=0.9)
  if corner:
    ax.annotate(
      f'↙ {corner}', (0.015, _zero_height(y)), (0, 5), xycoords='axes fraction',
      textcoords='offset points', fontsize=8, color=charts.INK, alpha=0.7,
    )  # fmt: skip


def lines_svg(
  curves: Mapping[str, Points],
  *,
  xlabel: str,
  ylabel: str,
  bound: tuple[str, Points] | None = None,
  linear: str = '',
  notes: Notes | None = None,
  corner: str = '',
) -> str:
  """Draws the same as SVG for a page; marks show their numbers as tooltips.

  Args:
    curves: points of each curve, keyed by its name.
    xlabel: name of the x axis, with its unit.
    ylabel: name of the y axis, with its unit.
    bound: name and curve of a lower bound of all curves.
    linear: the axes that are linear and contain zero: '', 'y' or 'xy'.
    notes: descriptions of the points; with them every point has a mark.
    corner: label of the lower left corner, above zero.

  Returns:
    The HTML.

  Raises:
    ChartError: points that cannot be shown on these axes.
  """
  drawn = _make_lines(curves, bound, linear, notes)
  frame = logs.PlotFrame(*_make_axes(drawn, linear), xlabel, ylabel, width=840, margin=230)
  middle = (logs.TOP + frame.bottom - 24 * (len(drawn) - 1)) / 2
  parts = [_draw_svg(line, frame, middle + 24 * row) for row, line in enumerate(drawn)]
  floor = frame.bottom - _zero_height(frame.y) * (frame.bottom - logs.TOP)
  if 'y' in linear:
    parts.insert(0, f'<path class="diagonal" d="M{logs.LEFT} {floor:.1f}H{frame.right}"/>')
  if corner:
    at = f'x="{logs.LEFT + 8}" y="{floor - 8:.1f}"'
    parts.insert(0, f'<text {at}>↙ {html.escape(corner)}</text>')
  return frame.render(''.join(parts))


def _zero_height(y: Axis) -> float:
  """Height of y = 0 as a fraction of the picture; 0 on a logarithmic axis."""
  return float(y.to_fraction(0.0)) if isinstance(y, LinearAxis) else 0.0


def _draw_svg(line: _Line, frame: logs.PlotFrame, at: float) -> str:
  """Draws a curve, and its name on the right at height `at`."""
  path = frame.place(line.xs, line.ys)
  # Many points fall on the same place of the screen and are written once.
  corners = 'L'.join(dict.fromkeys(f'{a:.1f} {b:.1f}' for a, b in path))
  kind = 'mark' if line.mark else 'felt'
  marks = [
    logs.mark(line.mark, path[i], frame.describe(line.describe(i), line.xs[i], line.ys[i]), kind)
    for i in line.marked
  ]
  left, style = frame.right + 16, f'class="line" stroke-dasharray="{line.dash}"'
  sample = logs.mark(line.mark, np.array([left + 22, at]), line.name, kind)
  return (
    f'<g style="--c:{line.paint}"><path {style} d="M{corners}"/>{"".join(marks)}'
    f'<path {style} d="M{left} {at}h44"/>{sample}'
    f'<text class="name" x="{left + 54}" y="{at + 4}">{html.escape(line.name)}</text></g>'
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Line:
  name: str
  xs: np.ndarray
  ys: np.ndarray
  colour: str
  paint: str  # the colour on a page
  dashes: tuple[int, ...]
  mark: str
  linear: str
  notes: Sequence[str] | None

  @property
  def marked(self) -> list[int]:
    """Indices of the points that have notes, or of up to eight, spread evenly over the axis, with both ends."""
    if self.notes is not None:
      return [*range(len(self.xs))]
    xs = self.xs if 'x' in self.linear else np.log(self.xs)
    at = np.linspace(xs[0], xs[-1], 8)
    return np.unique(np.abs(xs - at[:, None]).argmin(axis=1)).tolist()

  @property
  def height(self) -> float:
    """Mean height of the curve."""
    ys = self.ys[self.marked]
    return float((ys if 'y' in self.linear else np.log(ys)).mean())

  def describe(self, i: int) -> str:
    """Name and note of a point."""
    return self.name if self.notes is None else f'{self.name}, {self.notes[i]}'

  @property
  def dash(self) -> str:
    """The dashes in the syntax of SVG."""
    return ' '.join(map(str, self.dashes)) or 'none'


def _make_lines(
  curves: Mapping[str, Points],
  bound: tuple[str, Points] | None,
  linear: str,
  notes: Notes | None,
) -> list[_Line]:
  """The curves, highest first."""
  if linear not in ('', 'y', 'xy'):
    raise ChartError(f'linear={linear!r}', hint="the axes that are linear: '', 'y' or 'xy'")
  if not curves:
    raise ChartError('there are no curves to draw')
  drawn = []
  for n, (name, points) in enumerate(curves.items()):
    i, dashes, mark = n % len(COLOURS), _DASHES[n % len(_DASHES)], _MARKS[n % len(_MARKS)]
    xs, ys = _check_points(name, points, linear)
    own = None if notes is None else notes[name]
    drawn.append(_Line(name, xs, ys, COLOURS[i], f'var(--c{i})', dashes, mark, linear, own))
  if bound is not None:
    name, points = bound
    xs, ys = _check_points(name, points, linear)
    drawn.append(_Line(name, xs, ys, charts.INK, 'var(--ink)', (5, 4), '', linear, None))
  return sorted(drawn, key=lambda line: -line.height)


def _check_points(name: str, points: Points, linear: str) -> tuple[np.ndarray, np.ndarray]:
  xs, ys = (np.asarray(values, float) for values in points)
  if xs.shape != ys.shape or xs.ndim != 1 or not xs.size:
    raise ChartError(f'{name!r} has {xs.size} xs and {ys.size} ys; every point needs one of each')
  for axis, values in (('x', xs), ('y', ys)):
    bad = np.flatnonzero(~(np.isfinite(values) & ((axis in linear) | (values > 0))))
    if bad.size:
      raise ChartError(
        f'{axis} is {values[bad[0]]} in {name!r}',
        where=f'point {bad[0]} of {len(values)}',
        cause='infinite and missing values have no place on an axis, and a logarithmic axis has no zero',
        hint='leave the point out',
      )
  falls = np.flatnonzero(np.diff(xs) < 0)
  if falls.size:
    a, b = xs[falls[0]], xs[falls[0] + 1]
    raise ChartError(f'x goes from {a:g} to {b:g} in {name!r}', hint='sort the points by x')
  return xs, ys


def _make_axes(drawn: Sequence[_Line], linear: str) -> tuple[Axis, Axis]:
  def make(axis: str) -> Axis:
    values = np.concatenate([getattr(line, f'{axis}s') for line in drawn])
    return (LinearAxis if axis in linear else LogAxis).from_values(values)

  return make('x'), make('y')
