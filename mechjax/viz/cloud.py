"""Scatter plots of estimates against the truth, on matplotlib axes and as SVG.

An estimate that is too large costs one more check; one that is too small hides an important node. So
the triangle in which the estimate is less than a tenth of the truth is shaded, and points there (or
elsewhere) can be marked: they get a number and are listed by name next to the picture.

Sharp edge: logarithmic axes have no zero, and rounding errors would stretch them. Numbers below a
millionth of the largest are drawn on the edge, and the picture says so.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechjax.viz import charts, logs
from mechjax.viz.logs import ChartError, LogAxis

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Numbers = Sequence[float] | np.ndarray
BELOW = 'less than a tenth of the truth'


def cloud(
  ax: Axes,
  truth: Numbers,
  estimate: Numbers,
  *,
  title: str,
  xlabel: str,
  ylabel: str,
  marked: Mapping[int, str],
) -> None:
  """Draws estimates against the truth.

  Args:
    ax: where to draw.
    truth: non-negative numbers.
    estimate: as many estimates.
    title: title of the axes.
    xlabel: the true quantity, with its unit.
    ylabel: the estimated quantity, with its unit.
    marked: names of points to mark, keyed by index.

  Raises:
    ChartError: truth and estimate differ in number; numbers are negative or missing, or all are zero.
  """
  x, y, span, edge = _check_numbers(truth, estimate)
  others = np.setdiff1d(np.arange(len(x)), [*marked])
  ax.plot(x[others], y[others], 'o', color=charts.UP, markersize=3.4, alpha=0.5, markeredgewidth=0)
  ends = [span.low, span.high]
  ax.plot(ends, ends, color=charts.INK, linewidth=0.9)
  ax.fill_between(ends, span.low, [v / 10 for v in ends], color=charts.DOWN, alpha=0.1, linewidth=0)
  for number, i in enumerate(marked, 1):
    ax.plot(x[i], y[i], 'D', color=charts.DOWN, markersize=5, zorder=3)
    ax.annotate(str(number), (x[i], y[i]), (5, 3), textcoords='offset points', fontsize=8)
  logs.style_axes(ax, span, span, title=title, xlabel=xlabel, ylabel=ylabel)
  ax.text(0.02, 0.98, edge, transform=ax.transAxes, va='top', fontsize=8, color=charts.INK)
  ax.set_box_aspect(1)
  ax.set_anchor('W')
  ax.text(
    0.98, 0.02, BELOW, transform=ax.transAxes, ha='right', fontsize=8, color=charts.INK, alpha=0.7
  )
  names = [f'{n}  {charts.make_legible(name)}' for n, name in enumerate(marked.values(), 1)]
  ax.annotate(
    '\n'.join(names), (1.04, 1.0), xycoords='axes fraction', fontsize=8, va='top',
    color=charts.INK, parse_math=False, linespacing=1.6,
  )  # fmt: skip


def cloud_svg(
  truth: Numbers,
  estimate: Numbers,
  *,
  xlabel: str,
  ylabel: str,
  marked: Mapping[int, str],
  notes: Mapping[int, str],
) -> str:
  """Draws the same as SVG for a page.

  Args:
    truth: non-negative numbers.
    estimate: as many estimates.
    xlabel: the true quantity, with its unit.
    ylabel: the estimated quantity, with its unit.
    marked: names of points to mark, keyed by index.
    notes: names of other points, shown as tooltips.

  Returns:
    The HTML.

  Raises:
    ChartError: as `cloud`.
  """
  x, y, span, edge = _check_numbers(truth, estimate)
  frame = logs.PlotFrame(span, span, xlabel, ylabel, width=464, margin=24)
  at = frame.place(x, y)
  describe = lambda i, name: frame.describe(name, float(truth[i]), float(estimate[i]))  # noqa: E731
  # A stroke without length is a dot, so ten thousand dots are one short path.
  unlabelled = [at[i] for i in range(len(at)) if i not in marked and i not in notes]
  dots = ''.join(dict.fromkeys(f'M{a:.1f} {b:.1f}h0' for a, b in unlabelled))
  parts = [
    _draw_triangle(frame),
    f'<text x="{logs.LEFT + 8}" y="{logs.TOP + 18}">{edge}</text>',
    f'<path class="dots" d="{dots}"/>',
  ]
  for i, name in notes.items():
    if i not in marked:
      parts.append(logs.mark('.', at[i], describe(i, name), 'dot'))
  for number, (i, name) in enumerate(marked.items(), 1):
    parts.append(f'<g style="--c:var(--down)">{logs.mark("D", at[i], describe(i, name))}</g>')
    parts.append(f'<text x="{at[i, 0] + 7:.1f}" y="{at[i, 1] - 5:.1f}">{number}</text>')
  listed = ''.join(f'<li class="word">{html.escape(name)}</li>' for name in marked.values())
  return f'<div class="cloud">{frame.render("".join(parts))}<ol>{listed}</ol></div>'


def _check_numbers(
  truth: Numbers, estimate: Numbers
) -> tuple[np.ndarray, np.ndarray, LogAxis, str]:
  """Checks the numbers; returns them with the smallest raised to the edge, the axis, and the note on the edge."""
  x, y = np.asarray(truth, float), np.asarray(estimate, float)
  if x.shape != y.shape or x.ndim != 1:
    raise ChartError(f'{x.size} true numbers and {y.size} estimates; every point needs one of each')
  both = np.concatenate([x, y])
  if not np.isfinite(both).all() or (both < 0).any() or not both.any():
    raise ChartError(
      'magnitudes cannot be drawn if some are negative or missing, or all are zero',
      hint='pass absolute values of the effects',
    )
  low = max(both[both > 0].min(), both.max() * 1e-6)
  rounded = logs.number(float(f'{low:.1e}'))
  edge = f'on the edges: {rounded} or less' if (both < low).any() else ''
  return np.maximum(x, low), np.maximum(y, low), LogAxis.from_values([low, both.max()]), edge


def _draw_triangle(frame: logs.PlotFrame) -> str:
  """Draws the diagonal and the triangle of estimates below a tenth of the truth."""
  side = frame.right - logs.LEFT
  tenth = min(1.0, 1 / math.log10(frame.x.high / frame.x.low))
  across = logs.LEFT + tenth * side
  down = logs.TOP + tenth * (frame.bottom - logs.TOP)
  return (
    f'<path class="missed" d="M{across:.1f} {frame.bottom}H{frame.right}V{down:.1f}z"/>'
    f'<text x="{frame.right - 8}" y="{frame.bottom - 8}" text-anchor="end">{BELOW}</text>'
    f'<path class="diagonal" d="M{logs.LEFT} {frame.bottom}L{frame.right} {logs.TOP}"/>'
  )
