"""Curves on logarithmic axes, on matplotlib axes and as SVG for a page.

Methods are compared by curves that lie close together and often end in one point, so each differs
from its neighbours in colour, dash and mark, which tells them apart in greyscale too, and their names
stand beside the picture in the order in which the curves lie above each other. What no curve can be
below is dashed, in ink, without marks.

    lines(ax, {'AtP': (ks, costs)}, bound=('oracle', (ks, ks)), title=..., xlabel=..., ylabel=...)
    page.section(title, text, lines_svg({'AtP': (ks, costs)}, bound=..., xlabel=..., ylabel=...))

Sharp edge: a point that is zero, infinite or missing is refused, not skipped.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechjax.viz import charts, logs
from mechjax.viz.logs import ChartError, Span

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Points = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Increasing xs and as many ys, all positive."""

COLOURS = ('#2166ac', '#d1495b', '#1b7837', '#7b4fa3', '#a6611a', '#01798a', '#5d6874')
"""On white paper; a page has them as --c0, --c1, ..., and lighter ones in the dark."""

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
) -> None:
  """Curves with their names at their ends.

  Args:
    ax: where to draw.
    curves: by name.
    title: of the axes.
    xlabel: what the xs are, with their unit.
    ylabel: what the ys are, with their unit.
    bound: name and curve of what no other can be below.

  Raises:
    ChartError: points that do not belong on such axes.
  """
  drawn = _lines(curves, bound)
  x, y = _spans(drawn)
  for line in drawn:
    ax.plot(
      line.xs, line.ys, color=line.colour, linestyle=(0, line.dashes) if line.dashes else '-',
      linewidth=1.5, marker=line.mark, markevery=line.marked, markersize=5.5,
      markeredgecolor='white', markeredgewidth=0.7, label=charts.legible(line.name),
    )  # fmt: skip
  logs.dress(ax, x, y, title=title, xlabel=xlabel, ylabel=ylabel)
  legend = ax.legend(
    loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, handlelength=4.5,
    labelspacing=0.8,
  )  # fmt: skip
  for text in legend.get_texts():
    text.set(parse_math=False, color=charts.INK)


def lines_svg(
  curves: Mapping[str, Points],
  *,
  xlabel: str,
  ylabel: str,
  bound: tuple[str, Points] | None = None,
) -> str:
  """The same for a page; marks show their numbers when pointed at.

  Args:
    curves: by name.
    xlabel: what the xs are, with their unit.
    ylabel: what the ys are, with their unit.
    bound: name and curve of what no other can be below.

  Returns:
    The HTML.

  Raises:
    ChartError: points that do not belong on such axes.
  """
  drawn = _lines(curves, bound)
  frame = logs.Frame(*_spans(drawn), xlabel, ylabel, width=840, margin=230)
  middle = (logs.TOP + frame.bottom - 24 * (len(drawn) - 1)) / 2
  return frame.svg(''.join(_svg(line, frame, middle + 24 * row) for row, line in enumerate(drawn)))


def _svg(line: _Line, frame: logs.Frame, at: float) -> str:
  """A curve, and its name on the right at the height `at`."""
  path = frame.place(line.xs, line.ys)
  # Thousands of points fall on one place of the screen, and are written once.
  corners = 'L'.join(dict.fromkeys(f'{a:.1f} {b:.1f}' for a, b in path))
  kind = 'mark' if line.mark else 'felt'
  marks = [
    logs.mark(line.mark, path[i], frame.note(line.name, line.xs[i], line.ys[i]), kind)
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

  @property
  def marked(self) -> list[int]:
    """Indices of up to eight points, spread evenly over the axis, both ends among them."""
    at = np.geomspace(self.xs[0], self.xs[-1], 8)
    return np.unique(np.abs(np.log(self.xs) - np.log(at)[:, None]).argmin(axis=1)).tolist()

  @property
  def height(self) -> float:
    """How high the curve lies on the whole."""
    return float(np.log(self.ys[self.marked]).mean())

  @property
  def dash(self) -> str:
    """The dashes as SVG wants them."""
    return ' '.join(map(str, self.dashes)) or 'none'


def _lines(curves: Mapping[str, Points], bound: tuple[str, Points] | None) -> list[_Line]:
  """The curves, the highest first."""
  if not curves:
    raise ChartError('there are no curves to draw')
  drawn = []
  for n, (name, points) in enumerate(curves.items()):
    i, dashes, mark = n % len(COLOURS), _DASHES[n % len(_DASHES)], _MARKS[n % len(_MARKS)]
    drawn.append(_Line(name, *_checked(name, points), COLOURS[i], f'var(--c{i})', dashes, mark))
  if bound is not None:
    name, points = bound
    drawn.append(_Line(name, *_checked(name, points), charts.INK, 'var(--ink)', (5, 4), ''))
  return sorted(drawn, key=lambda line: -line.height)


def _checked(name: str, points: Points) -> tuple[np.ndarray, np.ndarray]:
  xs, ys = (np.asarray(values, float) for values in points)
  if xs.shape != ys.shape or xs.ndim != 1 or not xs.size:
    raise ChartError(f'{name!r} has {xs.size} xs and {ys.size} ys: one of each for every point')
  for axis, values in (('x', xs), ('y', ys)):
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
      raise ChartError(
        f'{axis} is {values[bad[0]]} in {name!r}',
        where=f'point {bad[0]} of {len(values)}',
        cause='a logarithmic axis has no zero, and no room for what was never reached',
        mend='leave the point out',
      )
  falls = np.flatnonzero(np.diff(xs) <= 0)
  if falls.size:
    a, b = xs[falls[0]], xs[falls[0] + 1]
    raise ChartError(f'x goes from {a:g} to {b:g} in {name!r}', mend='sort the points by x')
  return xs, ys


def _spans(drawn: Sequence[_Line]) -> tuple[Span, Span]:
  xs, ys = [line.xs for line in drawn], [line.ys for line in drawn]
  return Span.of(np.concatenate(xs)), Span.of(np.concatenate(ys))
