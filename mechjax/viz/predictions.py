"""Texts of a latent with true and predicted activations, for pages and figures.

    excerpts = align(score)                      strongest first
    excerpts[0].true, excerpts[0].predicted      both from 0 to 1, one number for each piece
    section(score, explanation=explanation)      the excerpts as a section of `page.page`
    draw_text(ax, excerpts[0], title=...)        one of them on matplotlib axes

The true activation is the colour behind a token, the predicted one the height of a bar below it, so that the two stay
apart in greyscale. A prediction that is shown one token late, or in other units, looks like a wrong explanation. So
both lists are compared before anything is drawn.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
from jaxtyping import Float, Float64

from mechjax import extras
from mechjax.autointerp.record import Control, Excerpt, Explanation, Score
from mechjax.viz import charts, logs, page
from mechjax.viz.logs import ChartError
from mechjax.viz.tokens import show_blanks

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure
  from matplotlib.patches import Rectangle

_TABLE = 'token table'
_CONTROLS = get_args(Control)
_NO_METHOD = 'none'
"""Method of the scores of scorers that need no explanation."""

_FONT_SIZE, _LINE_HEIGHT = 8.5, 30.0
"""Of the text of an excerpt in a figure, in points; a character is 0.602 of its size wide."""


@dataclasses.dataclass(frozen=True, eq=False)
class Aligned:
  """An excerpt with its predicted activations.

  Attributes:
    excerpt: the excerpt.
    true: its activations divided by the maximum, from 0 to 1, float64 [W].
    predicted: predicted activations in units of the largest level, from 0 to 1; NaN where the prediction failed.
  """

  excerpt: Excerpt
  true: Float64[np.ndarray, ' W']
  predicted: Float64[np.ndarray, ' W']


def align(score: Score, maximum: float = 0.0) -> list[Aligned]:
  """Pairs the excerpts of a score with its predictions, strongest excerpt first.

  Args:
    score: a score with predicted activations.
    maximum: activation that is shown as 1; the largest activation of these excerpts if that is larger.

  Raises:
    ChartError: another number of predictions than excerpts or tokens, or predictions outside 0 to 1.
  """
  where = f'{score.scorer} of latent {score.latent}, {label(score.method, score.control)}'
  if len(score.predicted) != len(score.excerpts):
    raise ChartError(
      f'{len(score.predicted)} predictions for {len(score.excerpts)} excerpts', where=where
    )
  limit = max(largest(score.excerpts), float(maximum)) or 1.0
  found = [
    Aligned(excerpt, np.asarray(excerpt.activations, float) / limit, _check(predicted, excerpt, where))
    for excerpt, predicted in zip(score.excerpts, score.predicted)
  ]  # fmt: skip
  return sorted(found, key=lambda one: -one.true.max())


def largest(excerpts: Sequence[Excerpt]) -> float:
  """Largest activation of some excerpts; 0 without any."""
  return max((float(np.max(excerpt.activations)) for excerpt in excerpts), default=0.0)


def label(method: str, control: Control) -> str:
  """Name of an explainer and a control, for readers."""
  name = 'no explanation' if method == _NO_METHOD else method
  name = _TABLE if control.startswith('table') else name
  return f'{name}, shuffled' if control.endswith('shuffled') else name


def list_kinds(scores: Iterable[Score], methods: Sequence[str] = ()) -> list[tuple[str, Control]]:
  """Pairs of method and control that occur, each explainer next to its shuffled twin, and the token table last.

  Args:
    scores: scores.
    methods: methods that come first, in this order.

  Raises:
    ChartError: an unknown control.
  """
  found = dict.fromkeys((score.method, score.control) for score in scores)
  for _, control in found:
    if control not in _CONTROLS:
      raise ChartError(f'control={control!r}', hint=f'one of {", ".join(_CONTROLS)}')
  order = [*dict.fromkeys([*methods, *(method for method, _ in found)])]

  def place(kind: tuple[str, Control]) -> tuple[bool, int, int]:
    return kind[1].startswith('table'), order.index(kind[0]), _CONTROLS.index(kind[1])

  return sorted(found, key=place)


def show_text(text: str) -> str:
  """A text with its spaces, and with escapes for everything that does not print or changes the direction of others."""
  return ' '.join(map(show_blanks, text.split(' ')))


def section(
  score: Score, *, explanation: Explanation | None = None, limit: int = 10, maximum: float = 0.0
) -> str:
  """Makes the excerpts of a score, with true and predicted activations, as a section of `page.page`.

  Args:
    score: a score with predicted activations.
    explanation: the explanation that was scored, which is quoted.
    limit: maximum number of excerpts, the strongest first.
    maximum: activation that has the strongest colour; the largest one of these excerpts if that is larger.

  Returns:
    The HTML.

  Raises:
    ChartError: a score without predictions, or predictions that do not fit its excerpts.
  """
  aligned = align(score, maximum)
  if not aligned:
    raise ChartError(
      f'the {score.scorer} score of latent {score.latent} has no predicted activations',
      hint='scorers that predict activations have them, such as simulation',
    )
  top = max(largest(score.excerpts), maximum)
  value = 'undefined' if math.isnan(score.value) else f'{score.value:.2f}'
  text = f'{label(score.method, score.control)}; {score.scorer} score {value}.'
  if explanation is not None and explanation.text is not None:
    text = f'“{show_text(" ".join(explanation.text.split()))}” ({text.removesuffix(".")}).'
  kept = aligned[:limit]
  if any(np.isnan(one.predicted).any() for one in kept):
    text += ' A hatched bar is a prediction that failed.'
  rows = [f'<p class="word compared">{_row(one, top)}</p>' for one in kept]
  return page.section(f'Latent {score.latent}', text, '\n'.join([_legend(top), *rows]))


def draw_text(ax: Axes, aligned: Aligned, *, title: str) -> None:
  """Draws one excerpt: true activations as colour behind the text, predicted ones as bars below it.

  Args:
    ax: where to draw, in a figure whose size is final, since its width decides how many characters fit on a line.
    aligned: an excerpt of `align`.
    title: title of the axes.
  """
  rectangle = extras.require('matplotlib.patches', 'viz').Rectangle
  charts.style_axes(ax, title, 'blue behind the text: true; red bar below it: predicted activation')
  ax.set(xticks=[], yticks=[])
  columns = _count_columns(ax)
  column = line = 0
  for piece, true, predicted in zip(aligned.excerpt.pieces, aligned.true, aligned.predicted):
    shown = charts.make_legible(show_text(piece))
    n = len(shown)
    if column and column + n > columns:
      column, line = 0, line + 1
    ax.add_patch(rectangle((column, line), n, 0.55, color=charts.UP, alpha=0.7 * true, linewidth=0))
    ax.add_patch(_bar(column, line, n, predicted))
    ax.plot([column, column + n], [line + 0.88] * 2, color='#dde2e6', linewidth=0.6, zorder=0)
    for i, character in enumerate(shown):
      ax.text(
        column + i + 0.5, line + 0.28, character, ha='center', va='center', fontsize=_FONT_SIZE,
        color=charts.INK, family='DejaVu Sans Mono', parse_math=False,
      )  # fmt: skip
    column += n
  ax.set(xlim=(0, columns), ylim=(max(line + 1, _count_lines(ax)), 0))


def _count_columns(ax: Axes) -> int:
  """Number of characters that fit on a line."""
  figure = cast('Figure', ax.figure)
  figure.draw_without_rendering()  # which gives the axes their place
  return max(20, int(ax.bbox.width / figure.dpi * 72 / (0.602 * _FONT_SIZE)))


def _count_lines(ax: Axes) -> float:
  """Number of lines that fit at the smallest height of a line."""
  assert ax.figure is not None
  return float(ax.bbox.height / ax.figure.dpi * 72 / _LINE_HEIGHT)


def _check(
  predicted: Float[np.ndarray, ' W'], excerpt: Excerpt, where: str
) -> Float64[np.ndarray, ' W']:
  values = np.asarray(predicted, float)
  if values.shape != (len(excerpt.pieces),):
    raise ChartError(
      f'predictions of shape {values.shape} for an excerpt of {len(excerpt.pieces)} tokens',
      where=where,
    )
  bad = values[(values < -1e-6) | (values > 1 + 1e-6)]
  if bad.size:
    raise ChartError(
      f'a predicted activation of {bad[0]:.4g}', where=where,
      cause='predictions are in units of the largest level, from 0 to 1',
      hint='divide them by the largest level, or by the maximum of the latent',
    )  # fmt: skip
  return values.clip(0, 1)


# --- texts -----------------------------------------------------------------------------------------------------


def _row(one: Aligned, top: float) -> str:
  parts = []
  for piece, true, predicted in zip(one.excerpt.pieces, one.true, one.predicted):
    failed = math.isnan(predicted)
    said = 'failed' if failed else f'{predicted * top:.3g}'
    note = html.escape(f'{show_blanks(piece)}\ntrue: {true * top:.3g}\npredicted: {said}')
    style = f'--w:{true:.3f};--p:{0 if failed else predicted:.3f}'
    kind = 'both failed' if failed else 'both'
    text = html.escape(show_text(piece))
    parts.append(f'<span class="{kind}" style="{style}" title="{note}">{text}</span>')
  return ''.join(parts)


def _legend(top: float) -> str:
  end = logs.number(float(f'{top:.3g}'))
  return (
    f'<div class="ramp">true, colour behind the text: 0<i class="true"></i>{end}</div>\n'
    f'<div class="ramp">predicted, height of the bar: 0<i class="predicted"></i>{end}</div>'
  )


def _bar(left: float, top: float, width: float, predicted: float) -> Rectangle:
  """A bar below the text, or a hatched one for a prediction that failed."""
  rectangle = extras.require('matplotlib.patches', 'viz').Rectangle
  if math.isnan(predicted):
    hatch = {'hatch': '//////', 'fill': False, 'edgecolor': charts.FAINT, 'linewidth': 0}
    return rectangle((left, top + 0.6), width, 0.28, **hatch)
  height = 0.28 * predicted
  return rectangle((left, top + 0.88 - height), width, height, color=charts.DOWN, linewidth=0)
