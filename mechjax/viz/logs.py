"""Axes, mostly logarithmic, with one layout for matplotlib and for SVG.

Costs of methods and contributions of nodes span decades. `LogAxis` gives the position of a number and
the ticks; `LinearAxis` does so for counts and for quantities that may be zero. `style_axes` applies two
of them to matplotlib axes, `PlotFrame` draws the same as SVG. `curves` and `cloud` fill them.

Sharp edges: a logarithmic axis has no zero; the caller decides what happens to it. An SVG has no styles
of its own: it needs those of `page`, which include a dark mode.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mechjax.errors import MechjaxError
from mechjax.viz import charts

if TYPE_CHECKING:
  from matplotlib.axes import Axes

HEIGHT, LEFT, TOP, BOTTOM = 430, 78, 12, 56

MARKS = {
  'o': 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z',
  's': 'M-3.6-3.6h7.2v7.2h-7.2z',
  '^': 'M0-4.8L4.6 3.6H-4.6z',
  'D': 'M0-5L5 0L0 5L-5 0z',
  'v': 'M0 4.8L4.6-3.6H-4.6z',
  '.': 'M-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z',
  '': 'M0-7L7 0L0 7L-7 0z',
}
"""Paths of the marks that matplotlib has under these letters; the empty one is an invisible mark for tooltips."""


class ChartError(MechjaxError, ValueError):
  """Numbers that cannot be drawn."""


@dataclasses.dataclass(frozen=True)
class LogAxis:
  """A logarithmic axis from `low` to `high`."""

  scale: ClassVar[str] = 'log'
  low: float
  high: float

  @classmethod
  def from_values(cls, values: Iterable[float]) -> LogAxis:
    """Makes an axis that covers positive numbers with a margin, and at least a factor of two."""
    low, high = min(values := list(values)), max(values)
    room = max((high / low) ** 0.04, math.sqrt(2) if high < 2 * low else 1.0)
    return cls(low / room, high * room)

  def to_fraction(self, value: float | np.ndarray) -> np.ndarray:
    """Position of a number along the axis, from 0 to 1."""
    return np.log(np.asarray(value) / self.low) / math.log(self.high / self.low)

  @property
  def ticks(self) -> list[float]:
    """Powers of ten, and multiples of them if there would be fewer than three ticks."""
    tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
    inside: list[float] = []
    for steps in ((1,), (1, 2, 5), range(1, 10)):
      ticks = [m * 10.0**k for k in tens for m in steps]
      inside = [t for t in ticks if self.low <= t <= self.high]
      if len(inside) >= 3:
        break
    return inside


@dataclasses.dataclass(frozen=True)
class LinearAxis:
  """A linear axis from `low` to `high`."""

  scale: ClassVar[str] = 'linear'
  low: float
  high: float

  @classmethod
  def from_values(cls, values: Iterable[float]) -> LinearAxis:
    """Makes an axis that covers numbers and zero, with a margin at each end that is not zero."""
    low, high = min(0.0, *(values := list(values))), max(0.0, *values)
    room = 0.06 * (high - low or 1.0)
    return cls(low - room * (low < 0), high + room * (high > 0 or low == 0))

  def to_fraction(self, value: float | np.ndarray) -> np.ndarray:
    """Position of a number along the axis, from 0 to 1."""
    return (np.asarray(value) - self.low) / (self.high - self.low)

  @property
  def ticks(self) -> list[float]:
    """Three to nine multiples of 1, 2 or 5 times a power of ten."""
    third = (self.high - self.low) / 3
    unit = 10.0 ** math.floor(math.log10(third))
    step = unit * max(m for m in (1, 2, 5) if m == 1 or m * unit <= third)
    return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


Axis = LogAxis | LinearAxis


def number(value: float) -> str:
  """Formats a number for readers: 12,345 or 0.0125 or 3×10⁻⁶, or NaN."""
  if math.isnan(value):
    return 'NaN'
  if value == 0 or 1e-3 <= abs(value) < 1e9:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
  digits, power = f'{value:.3e}'.split('e')
  raised = str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))
  return f'{float(digits):g}×10{raised}'.removeprefix('1×')


def style_axes(ax: Axes, x: Axis, y: Axis, *, title: str, xlabel: str, ylabel: str) -> None:
  """Applies two axes, a title and labels to matplotlib axes."""
  ax.set(xscale=x.scale, yscale=y.scale, xlim=(x.low, x.high), ylim=(y.low, y.high))
  for axis, span in ((ax.xaxis, x), (ax.yaxis, y)):
    axis.set_ticks([], minor=True)
    axis.set_ticks(span.ticks, [number(t) for t in span.ticks])
  ax.grid(color='#dde2e6', linewidth=0.6)
  charts.style_axes(ax, title, xlabel)
  ax.set_ylabel(ylabel, fontsize=9, color=charts.INK)


@dataclasses.dataclass(frozen=True)
class PlotFrame:
  """Two axes as SVG, `width` wide, with a margin on the right.

  Attributes:
    x, y: the axes.
    xlabel, ylabel: their labels.
    width, margin: in units of the drawing, which are pixels if the page is wide enough.
  """

  x: Axis
  y: Axis
  xlabel: str
  ylabel: str
  width: float
  margin: float

  @property
  def right(self) -> float:
    return self.width - self.margin

  @property
  def bottom(self) -> float:
    return HEIGHT - BOTTOM

  def place(self, x: float | np.ndarray, y: float | np.ndarray) -> np.ndarray:
    """Positions of points on the drawing, [..., 2]."""
    across = LEFT + self.x.to_fraction(x) * (self.right - LEFT)
    return np.stack([across, self.bottom - self.y.to_fraction(y) * (self.bottom - TOP)], axis=-1)

  def describe(self, name: str, x: float, y: float) -> str:
    """The tooltip of a point."""
    return f'{name}\n{self.xlabel}: {number(x)}\n{self.ylabel}: {number(y)}'

  def render(self, body: str) -> str:
    """Draws `body` on the grid of the axes."""
    parts = []
    for tick in self.x.ticks:
      at = self.place(tick, self.y.low)[0]
      parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{self.bottom}"/>')
      parts.append(
        f'<text x="{at:.1f}" y="{self.bottom + 18}" text-anchor="middle">{number(tick)}</text>'
      )
    for tick in self.y.ticks:
      at = self.place(self.x.low, tick)[1]
      parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{self.right}"/>')
      parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    middle = (LEFT + self.right) / 2, (TOP + self.bottom) / 2
    axes = (
      f'<text x="{middle[0]}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(self.xlabel)}'
      f'</text><text transform="translate(14 {middle[1]}) rotate(-90)" text-anchor="middle">'
      f'{html.escape(self.ylabel)}</text>'
    )
    return (
      f'<svg class="plot" viewBox="0 0 {self.width} {HEIGHT}" style="max-width:{self.width}px" '
      f'role="img">{"".join(parts)}{axes}{body}</svg>'
    )


def mark(shape: str, at: np.ndarray, note: str, kind: str = 'mark') -> str:
  """Draws a mark as SVG with a tooltip."""
  return (
    f'<path class="{kind}" transform="translate({at[0]:.1f} {at[1]:.1f})" d="{MARKS[shape]}">'
    f'<title>{html.escape(note)}</title></path>'
  )
