"""The results as one picture: scores by layer, shares of completions, and the direction inside the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechjax.viz import charts, curves

if TYPE_CHECKING:
  from matplotlib.axes import Axes

SHADES = {'refused': '#2166ac', 'answered': '#d9e0e6', 'degenerate': '#d1495b'}
_MARKS = 'os^Dv'


def make_title(results: dict[str, Any]) -> str:
  """Study, model and whether prompts have the system message."""
  system = 'with' if results['settings']['system'] else 'without'
  return f'{results["study"]["title"]}: {results["model"]["name"]}, {system} system prompt'


def draw(results: dict[str, Any], path: Path) -> None:
  """Writes the picture as PNG."""
  rates = len(results['rates'])
  heights = [3.4, 1.2 + 0.3 * rates, 4.0]
  fig = charts.figure(12.5, sum(heights))
  fig.suptitle(charts.make_legible(make_title(results)), fontsize=12, parse_math=False)
  above, middle, below = fig.subfigures(3, 1, height_ratios=heights, squeeze=False).flat
  for ax, score in zip(above.subplots(1, 3), ('bypass', 'induce', 'kl')):
    draw_scores(ax, results, score)
  draw_rates(middle.subplots(), results)
  left, right = below.subplots(1, 2)
  draw_cosines(left, results)
  draw_heads(right, results)
  charts.save(fig, path)


def draw_scores(ax: Axes, results: dict[str, Any], score: str) -> None:
  """Draws a score over layers, a curve for each position, with its limit and the value of the plain model."""
  chosen, settings, (positive, negative) = (
    results['chosen'],
    results['settings'],
    results['study']['sets'],
  )
  values = np.array(results['scores'][score], float)
  for i, (position, row) in enumerate(zip(settings['positions'], values)):
    colour, mark = curves.COLOURS[i % len(curves.COLOURS)], _MARKS[i % len(_MARKS)]
    ax.plot(
      row, color=colour, marker=mark, markersize=3.5, linewidth=1.3, label=f'position {position}'
    )
  lines = {
    'bypass': [(chosen['positive'], ':', 'plain model')],
    'induce': [(settings['induce'], '--', 'limit'), (chosen['negative'], ':', 'plain model')],
    'kl': [(settings['kl'], '--', 'limit')],
  }[score]  # fmt: skip
  for height, style, label in lines:
    ax.axhline(height, color=charts.INK, linestyle=style, linewidth=1, label=label)
  at = settings['positions'].index(chosen['position']), chosen['layer']
  ax.plot(at[1], values[at], 'o', markersize=11, fillstyle='none', color=charts.INK, label='chosen')
  titles = {
    'bypass': (f'Direction removed: {positive} prompts', 'log-odds of the behaviour (bypass)'),
    'induce': (f'Direction added: {negative} prompts', 'log-odds of the behaviour (induce)'),
    'kl': (f'Cost of the removal: {negative} prompts', 'KL(plain || removed), nats'),
  }
  if score == 'kl':
    ax.set_yscale('log')
  charts.style_axes(ax, titles[score][0], 'layer of the candidate')
  ax.locator_params(axis='x', integer=True)
  _finish(ax, titles[score][1])
  ax.legend(fontsize=7.5, frameon=False)


def draw_rates(ax: Axes, results: dict[str, Any]) -> None:
  """Draws the shares of the three classes as stacked bars, with the interval of the first class."""
  classes, sets = results['study']['classes'], results['study']['sets']
  shown = [(name, one) for name, one in results['rates'].items() if 'shares' in one]
  for row, (_, one) in enumerate(shown):
    left = 0.0
    for name in classes:
      count, total, *_ = one['shares'][name]
      ax.barh(row, count / total, left=left, color=SHADES[name], height=0.7)
      left += count / total
    count, total, low, high = one['shares']['refused']
    share = count / total
    error = [[max(share - low, 0)], [max(high - share, 0)]]
    ax.errorbar(share, row, xerr=error, color=charts.INK, linewidth=1.2, capsize=3)
    ax.annotate(
      f'{share:.2f}', (1.0, row), (6, 0), textcoords='offset points', va='center', fontsize=8, color=charts.INK
    )  # fmt: skip
  labels = [
    f'{sets[not name.startswith("positive")]}: {name.partition(" ")[2]}' for name, _ in shown
  ]
  ax.set_yticks(range(len(labels)), labels)
  ax.set_ylim(len(labels) - 0.4, -0.6)
  ax.set_xlim(0, 1.06)
  first = [name for name, _ in shown if name.startswith('positive')]
  ax.axhline(len(first) - 0.5, color=charts.FAINT, linewidth=0.8)
  total = next(iter(shown))[1]['shares']['refused'][1]
  charts.style_axes(
    ax,
    f'Completions of {total} test prompts of each kind',
    f'share of completions; line and number: {classes["refused"]}, with its 95 % Wilson interval',
  )
  for name, word in classes.items():
    ax.barh(0, 0, color=SHADES[name], label=word)
  ax.legend(loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)


def draw_cosines(ax: Axes, results: dict[str, Any]) -> None:
  """Draws the cosine of the stream with the direction by layer, with a band of one standard deviation."""
  for i, (name, one) in enumerate(results['inside']['cosines'].items()):
    mean, sd = np.array(one['mean']), np.array(one['sd'])
    colour = curves.COLOURS[i % len(curves.COLOURS)]
    ax.plot(mean, color=colour, marker=_MARKS[i % len(_MARKS)], markersize=3.5, linewidth=1.3, label=name)  # fmt: skip
    ax.fill_between(range(len(mean)), mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
  ax.axhline(0, color=charts.INK, linewidth=0.8)
  ax.axvline(results['chosen']['layer'], color=charts.FAINT, linestyle='--', linewidth=1)
  charts.style_axes(
    ax, 'The direction in the stream at the last position', 'layer (dashed: chosen)'
  )
  ax.locator_params(axis='x', integer=True)
  _finish(ax, 'cosine, mean and sd over prompts')
  ax.legend(fontsize=7.5, frameon=False)


def draw_heads(ax: Axes, results: dict[str, Any]) -> None:
  """Draws the contributions of the largest heads for each set of prompts."""
  inside = results['inside']
  heads, sets = inside['heads'], inside['sets']
  height = 0.8 / len(sets)
  for i, (name, one) in enumerate(sets.items()):
    rows = np.arange(len(heads)) + (i - (len(sets) - 1) / 2) * height
    colour = curves.COLOURS[i % len(curves.COLOURS)]
    ax.barh(rows, one['contribution'], height=0.9 * height, color=colour, label=name)
  ax.set_yticks(range(len(heads)), [f'{layer}.{head}' for layer, head in heads])
  ax.set_ylim(len(heads) - 0.4, -0.6)
  ax.axvline(0, color=charts.INK, linewidth=0.8)
  charts.style_axes(
    ax, 'Heads that write the direction most', 'contribution along the direction, last position'
  )
  ax.set_ylabel('layer.head', fontsize=9, color=charts.INK)
  ax.legend(fontsize=7.5, frameon=False)


def _finish(ax: Axes, ylabel: str) -> None:
  ax.set_ylabel(ylabel, fontsize=9, color=charts.INK)
  ax.grid(color='#dfe4e8', linewidth=0.6)
  ax.set_axisbelow(True)
