"""Scatter plots of two measurements of one quantity, on linear axes, on matplotlib axes and as SVG.

Both axes have one scale and contain zero, and the diagonal shows where the two are equal. So a point on an axis is a
case that only one of the two sees, and a line of points that meets the vertical axis above zero has an intercept.

    scatter(ax, f_encoder, f_pursuit, title=..., xlabel='activation by the encoder', ylabel='by the pursuit')
    page.section(title, text, scatter_svg(f_encoder, f_pursuit, xlabel=..., ylabel=...))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechjax.viz import charts, logs
from mechjax.viz.logs import ChartError, LinearAxis

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Numbers = Sequence[float] | np.ndarray


def scatter(ax: Axes, xs: Numbers, ys: Numbers, *, title: str, xlabel: str, ylabel: str) -> None:
  """Draws points and the diagonal.

  Args:
    ax: where to draw.
    xs, ys: as many numbers.
    title: title of the axes.
    xlabel, ylabel: the two measurements, with their unit.

  Raises:
    ChartError: xs and ys differ in number or are empty, or some are missing or infinite.
  """
  x, y, span = _check_points(xs, ys)
  ends = [span.low, span.high]
  ax.plot(ends, ends, color=charts.INK, linewidth=0.9)
  ax.plot(x, y, 'o', color=charts.UP, markersize=3.4, alpha=0.5, markeredgewidth=0, clip_on=False)
  logs.style_axes(ax, span, span, title=title, xlabel=xlabel, ylabel=ylabel)
  ax.set_box_aspect(1)
  ax.set_anchor('W')


def scatter_svg(xs: Numbers, ys: Numbers, *, xlabel: str, ylabel: str) -> str:
  """Draws the same as SVG for a page; see `scatter`."""
  x, y, span = _check_points(xs, ys)
  frame = logs.PlotFrame(span, span, xlabel, ylabel, width=464, margin=24)
  # A stroke without length is a dot, so ten thousand dots are one short path.
  dots = ''.join(dict.fromkeys(f'M{a:.1f} {b:.1f}h0' for a, b in frame.place(x, y)))
  low, high = frame.place(np.array([span.low, span.high]), np.array([span.low, span.high]))
  diagonal = f'M{low[0]:.1f} {low[1]:.1f}L{high[0]:.1f} {high[1]:.1f}'
  return frame.render(f'<path class="diagonal" d="{diagonal}"/><path class="dots" d="{dots}"/>')


def _check_points(xs: Numbers, ys: Numbers) -> tuple[np.ndarray, np.ndarray, LinearAxis]:
  x, y = np.asarray(xs, float), np.asarray(ys, float)
  if x.shape != y.shape or x.ndim != 1 or not x.size:
    raise ChartError(f'{x.size} xs and {y.size} ys; every point needs one of each')
  both = np.concatenate([x, y])
  if not np.isfinite(both).all():
    raise ChartError(
      'a point is missing or infinite, and has no place on an axis', hint='leave it out'
    )
  return x, y, LinearAxis.from_values(both)
