"""Charts on matplotlib axes: bars of either sign, and heat maps of words or of numbers.

An experiment makes the figure and arranges the axes; a function here fills one pair of axes with one
kind of chart, titled and labelled, with colours that remain distinct in greyscale and for the common
kinds of colour blindness (blue against vermilion, one blue ramp).

Sharp edges: labels are drawn as they are, never as TeX ('$' is a token like any other), and a
character that the font lacks is shown as an empty box. Red and blue of equal strength are the same
grey in greyscale, so for greyscale printing draw heat maps of magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechjax import extras
from mechjax.viz import scale

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

INK, FAINT, UP, DOWN = '#1c2733', '#8a949e', '#2166ac', '#d1495b'


def figure(width: float, height: float) -> Figure:
  """Makes an empty figure that needs no display and no global state.

  Args:
    width: in inches.
    height: in inches.

  Returns:
    The figure.

  Raises:
    MissingExtraError: matplotlib is not installed.
  """
  return extras.require('matplotlib.figure', 'viz').Figure(
    figsize=(width, height), dpi=150, layout='constrained'
  )


def save(fig: Figure, path: Path) -> None:
  """Writes a figure as PNG on white."""
  fig.savefig(path, facecolor='white')


def bars(
  ax: Axes,
  labels: Sequence[str],
  values: Sequence[float],
  *,
  title: str,
  xlabel: str,
  number: str = '{:.2f}',
  limit: float = math.inf,
) -> None:
  """Draws horizontal bars, first label on top, each with its number at its end.

  Args:
    ax: where to draw.
    labels: labels of the bars.
    values: their lengths; negative ones point left and have another colour.
    title: title of the axes.
    xlabel: the quantity, with its unit.
    number: format of the numbers.
    limit: magnitude at which longer bars are cut and hatched; see `scale.limit`.
  """
  rows = range(len(values))
  drawn = [scale.cut(v, limit) for v in values]
  bars_ = ax.barh(rows, drawn, color=[UP if v >= 0 else DOWN for v in values], height=0.72)
  for bar, value in zip(bars_, values, strict=True):
    if abs(value) > limit:
      bar.set(hatch='////', edgecolor='white', linewidth=0)
  ax.axvline(0, color=INK, linewidth=0.8)
  low, high = min(0.0, *drawn), max(0.0, *drawn)
  room = 0.2 * (high - low or 1.0)
  ax.set_xlim(low - room * (low < 0), high + room * (high > 0))
  for row, value, length in zip(rows, values, drawn, strict=True):
    side = 1 if value >= 0 else -1
    ax.annotate(
      number.format(value), (length, row), (3 * side, 0), textcoords='offset points', va='center',
      ha='left' if value >= 0 else 'right', fontsize=8, color=INK,
    )  # fmt: skip
  _ticks(ax.yaxis, labels)
  ax.set_ylim(len(values) - 0.5, -0.5)
  style_axes(ax, title, xlabel)


def words(
  ax: Axes,
  cells: Sequence[Sequence[str]],
  weights: Sequence[Sequence[float]],
  *,
  rows: Sequence[str],
  columns: Sequence[str],
  title: str,
  xlabel: str,
  ylabel: str,
  weight: str,
) -> None:
  """Draws a table of words on a heat map.

  Args:
    ax: where to draw.
    cells: [rows][columns] words.
    weights: [rows][columns] numbers from 0 to 1 that colour the cells.
    rows: labels of the rows, from the top.
    columns: a label for each column.
    title: title of the axes.
    xlabel: name of the columns.
    ylabel: name of the rows.
    weight: meaning of the colour, for its scale.
  """
  image = ax.imshow(weights, cmap='Blues', vmin=0, vmax=1, aspect='auto')
  for i, row in enumerate(cells):
    for j, word in enumerate(row):
      ink = 'white' if weights[i][j] > 0.55 else INK
      ax.text(
        j, i, make_legible(word), ha='center', va='center', fontsize=8, color=ink, parse_math=False
      )
  _ticks(ax.yaxis, rows)
  _ticks(ax.xaxis, columns)
  assert ax.figure is not None
  ax.figure.colorbar(image, ax=ax, label=weight, fraction=0.03, pad=0.015)
  style_axes(ax, title, xlabel)
  ax.set_ylabel(ylabel)


def heatmap(
  ax: Axes,
  values: Any,
  *,
  rows: Sequence[str],
  columns: Sequence[str],
  title: str,
  xlabel: str,
  ylabel: str,
  limit: float,
  signed: bool,
  number: str = '{:.2f}',
) -> Any:
  """Draws a heat map of numbers: white is 0, blue positive, vermilion negative, and hatched is NaN.

  Args:
    ax: where to draw.
    values: [rows][columns] numbers; NaN marks a missing one.
    rows: labels of the rows, from the top.
    columns: a label for each column; long ones are written downwards.
    title: title of the axes.
    xlabel: name of the columns.
    ylabel: name of the rows.
    limit: magnitude at which the colours end; a cell beyond it is framed and keeps its number.
    signed: whether the colours extend to -limit, or begin at 0.
    number: format of the numbers.

  Returns:
    The image, for `colour_scale`.
  """
  values = np.asarray(values, float)
  patches = extras.require('matplotlib.patches', 'viz')
  ax.set_facecolor('#f1f3f5')
  ax.add_patch(
    patches.Rectangle(
      (0, 0), 1, 1, transform=ax.transAxes, hatch='//////', fill=False, edgecolor='#b4bcc4',
      linewidth=0, zorder=-1,
    )
  )  # fmt: skip
  image = ax.imshow(
    np.ma.masked_invalid(values), cmap=_colours(signed), vmin=-limit if signed else 0, vmax=limit,
    aspect='auto',
  )  # fmt: skip
  for i, j in np.argwhere(np.abs(values) > limit):
    frame = patches.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.2)
    ax.add_patch(frame)
    text = number.format(values[i, j])
    ax.text(j, i, text, ha='center', va='center', fontsize=6.5, color='white')
  _ticks(ax.yaxis, rows)
  _ticks(ax.xaxis, columns, rotated=max(map(len, columns)) > 4)
  ax.set_xticks(np.arange(0.5, len(columns) - 1), minor=True)
  ax.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
  ax.grid(which='minor', color='#dfe4e8', linewidth=0.5)
  ax.tick_params(which='minor', length=0)
  style_axes(ax, title, xlabel)
  for spine in ax.spines.values():
    spine.set(visible=True, color='#dfe4e8', linewidth=0.5)
  ax.set_ylabel(ylabel, fontsize=9, color=INK)
  return image


def colour_scale(ax: Axes, image: Any, label: str, *, extend: str) -> None:
  """Draws the colour scale of one or more heat maps with equal colours, horizontally on its own axes.

  Args:
    ax: the axes that it fills.
    image: from `heatmap`.
    label: meaning of the colours, with the unit.
    extend: ends at which cells lie beyond the colours: 'neither', 'min', 'max' or 'both'.
  """
  assert ax.figure is not None
  bar = ax.figure.colorbar(image, cax=ax, orientation='horizontal', extend=extend, extendfrac=0.02)
  bar.set_label(label, fontsize=9, color=INK)
  bar.ax.tick_params(colors=INK, labelsize=8)
  bar.outline.set_visible(False)
  ax.set_box_aspect(0.03)


def _colours(signed: bool) -> Any:
  colours = [DOWN, 'white', UP] if signed else ['white', UP]
  return extras.require('matplotlib.colors', 'viz').LinearSegmentedColormap.from_list('', colours)


def make_legible(text: str) -> str:
  """Replaces every character that the default font cannot draw by a box."""
  manager = extras.require('matplotlib.font_manager', 'viz')
  have = manager.get_font(manager.findfont('DejaVu Sans')).get_charmap()
  return ''.join(c if ord(c) in have else '□' for c in text)


def _ticks(axis: Any, labels: Sequence[str], *, rotated: bool = False) -> None:
  """Labels the ticks 0, 1, ...; if there are too many to read, only every second, third, ... one."""
  step = -(-len(labels) // 64)
  texts = [make_legible(label) for label in labels[::step]]
  axis.set_ticks(range(0, len(labels), step), texts, fontsize=8, rotation=-90 if rotated else 0)
  for label in axis.get_ticklabels():
    label.set_parse_math(False)


def style_axes(ax: Axes, title: str, xlabel: str) -> None:
  """Sets title and x label, and removes frame and tick marks."""
  ax.set_title(title, loc='left', fontsize=10.5, fontweight='bold', color=INK)
  ax.set_xlabel(xlabel, fontsize=9, color=INK)
  ax.tick_params(colors=INK, length=0, labelsize=8)
  for spine in ax.spines.values():
    spine.set_visible(False)
