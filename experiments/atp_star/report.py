"""Reports: the results as lines of text, as one picture and as one page.

Picture and page begin with the ability of the model, because the rest is meaningless without it. Then come the truth,
the comparison of the methods, and single nodes: those that plain AtP missed, and the fixes that found them. Pictures
show plain AtP and the best of the other methods that estimate effects, by the cost of verified recall over all K.

All values are contributions, the mean over pairs of the magnitude: methods are ranked by them, and GradDrop has no
sign. The list of the largest nodes gives the signed mean as well.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.atp_star.measure import Measurement
from experiments.atp_star.methods import MethodResult
from mechjax.patching import Effects
from mechjax.viz import charts, cuts, page, patching, searches
from mechjax.viz.cuts import View

VIEW = View('contribution')
_ROWS, _PROMPTS, _MAX_COLUMNS = 40, 10, 16


def text(metrics: dict[str, Any]) -> str:
  """Comparison of the methods, as lines of text."""
  heads, rows = _compare(metrics)
  lines = [['', *heads], *([name, *cells] for name, cells, _ in rows)]
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join(
    '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
  )


def select_shown(measured: Measurement) -> list[MethodResult]:
  """Selects plain AtP, or the first method that estimates effects, and the best other one; fewer if there are fewer."""
  judged = measured.metrics['methods']
  estimates = [key for key, one in measured.found.items() if one.effects is not None]
  others = sorted(estimates[1:], key=lambda key: judged[key]['aggregate'])
  return [measured.found[key] for key in [*estimates[:1], *others[:1]]]


# --- the picture --------------------------------------------------------------------------------------


def picture(measured: Measurement, path: Path) -> None:
  """Draws the results as one PNG: the truth, the best approximation, and the cost of each method."""
  best = select_shown(measured)[-1:]
  bands = [(e, maps(e, measured.tokens)) for e in (measured.truth, *(one.estimate for one in best))]
  limit = cuts.common_limit([m for _, band in bands for m in band])
  columns = sum(len(m.columns) for _, band in bands for m in band)
  stacked = columns > _MAX_COLUMNS
  heights = [1.3, _height(bands[0][1]) * (len(bands) if stacked else 1), 5.4]
  fig = charts.figure(17.4, sum(heights))
  above, middle, below = fig.subfigures(3, 1, height_ratios=heights, squeeze=False).flat
  parts = middle.subfigures(*((len(bands), 1) if stacked else (1, len(bands))), squeeze=False)
  for part, (effects, band) in zip(parts.ravel(), bands):
    part.suptitle(charts.make_legible(effects.title), fontsize=11, parse_math=False)
    axes = part.subplots(1, len(band), width_ratios=[len(m.columns) for m in band], squeeze=False)
    images = [patching.draw(ax, m, limit) for ax, m in zip(axes[0], band)]
  beyond = any((m.values > limit).any() for _, band in bands for m in band)
  words = [title(measured.metrics), *textwrap.wrap(measured.metrics['ability_kept']['text'], 160)]
  above.suptitle('\n'.join(map(charts.make_legible, words)), fontsize=11, parse_math=False)
  scale = above.add_gridspec(1, 3)[1]
  unit, extend = bands[0][1][0].unit, 'max' if beyond else 'neither'
  charts.colour_scale(above.add_subplot(scale), images[0], unit, extend=extend)
  left, right = below.subfigures(1, 2)
  searches.cost_axes(left.subplots(), _curves(measured), title=measured.truth.title)
  for one in select_shown(measured)[:1]:
    searches.estimate_axes(right.subplots(), measured.truth, one.estimate, measured.tokens)
  charts.save(fig, path)


def maps(effects: Effects, tokens: Sequence[str]) -> list[cuts.Map]:
  """The first map of each grid."""
  found = {m.grid: m for m in reversed(cuts.maps(effects, tokens, VIEW))}
  return [found[number] for number in sorted(found)]


def _height(band: Sequence[cuts.Map]) -> float:
  rows = max(len(m.rows) for m in band)
  label = max(len(column) for m in band for column in m.columns)
  return 1.2 + 0.15 * rows + 0.07 * label


def _curves(measured: Measurement) -> dict[str, tuple]:
  curve = measured.metrics['curve']
  return {measured.found[key].name: (curve['k'], costs) for key, costs in curve['costs'].items()}


# --- the page -----------------------------------------------------------------------------------------


def document(measured: Measurement) -> str:
  """Writes the results as one HTML page."""
  metrics, truth, tokens = measured.metrics, measured.truth, measured.tokens
  compared = select_shown(measured)
  sections = [
    _ability(metrics),
    *_truth(measured),
    _methods(metrics),
    searches.cost_section(_curves(measured), title=truth.title),
    *(searches.estimate_section(truth, one.estimate, tokens) for one in compared),
    *(_false_negatives(metrics, key) for key, one in measured.found.items() if one in compared),
    _largest(measured),
  ]
  if any('verified' in one for one in metrics['methods'].values()):
    sections.append(_bounds(metrics))
  versions = ', '.join(f'{name} {version}' for name, version in metrics['versions'].items())
  return page.page(
    title(metrics), metrics['task']['question'], sections,
    footer=f'{metrics.get("command", "experiments.atp_star")} ({versions})',
  )  # fmt: skip


def title(metrics: dict[str, Any]) -> str:
  settings = metrics['settings']
  layers = f' of layers {settings["layers"]}' if settings['layers'] else ''
  return (
    f'{metrics["task"]["name"]}: {settings["nodes"]}{layers} of {metrics["model"]}, '
    f'{settings["mode"]}, {metrics["nodes"]["count"]:,} nodes'
  )


def _ability(metrics: dict[str, Any]) -> str:
  able, task = metrics['ability'], metrics['task']
  prompts = task['prompts'][:_PROMPTS]
  which = 'The pairs' if len(prompts) == task['pairs'] else f'The first {len(prompts)} of them'
  words = (
    f'Before any patch: {able["text"]}. {task["selection"]}; all further results are for these. '
    f'{which}:'
  )
  heads = ['prompt', 'answer', 'compared with']
  rows = []
  for i, p in enumerate(prompts, 1):
    rows.append((f'{i} clean', [p['clean'], p['answer'], p['other']], [0, 0, 0]))
    rows.append((f'{i} noise', [p['noise'], '', ''], [0, 0, 0]))
  return page.section('Ability of the model', words, _table('', heads, rows, ''))


def _truth(measured: Measurement) -> list[str]:
  """Maps of the truth for each grid, next to a map of the best approximation."""
  truth, tokens, best = measured.truth, measured.tokens, select_shown(measured)[-1:]
  true = cuts.maps(truth, tokens, VIEW)
  near = {m.grid: (one.name, m) for one in best for m in maps(one.estimate, tokens)}
  limit = cuts.common_limit([*true, *(m for _, m in near.values())])
  sections = []
  for grid in sorted({m.grid for m in true}):
    mine = [('exact', m) for m in true if m.grid == grid]
    both = [*mine, *([near[grid]] if grid in near else [])]
    beyond = sum(int((m.values > limit).sum()) for _, m in both)
    words = f'{truth.title}. Hover over a cell to see its number and its node.'
    if beyond:
      words += f' Framed: outside the colour scale, {beyond} of the cells.'
    body = page.side_by_side(patching.table(_caption(name, m), limit) for name, m in both)
    legend = page.ramp(limit, signed=False, unit=mine[0][1].unit)
    sections.append(page.section(f'The truth: {mine[0][1].name}', words, body + legend))
  return sections


def _caption(name: str, shown: cuts.Map) -> cuts.Map:
  return dataclasses.replace(
    shown, reduction=f'{name}: {shown.reduction}' if shown.reduction else name
  )


def _compare(metrics: dict[str, Any]) -> tuple[list[str], list[tuple]]:
  """Column heads, and for each method (and the oracle) its name, its cells and the quality of each cell."""
  ks = metrics['settings']['ks']
  heads = [
    'passes',
    'seconds',
    'Spearman',
    *(f'top {k}' for k in ks),
    'all K',
    f'missed of {ks[-1]}',
  ]
  rows = []
  for one in metrics['methods'].values():
    cells = [
      f'{one["passes"]:,.0f}', f'{one["seconds"]:.2f}', f'{one["spearman"]:.3f}',
      *(f'{cost:,.0f}' for cost in one['costs']), f'{one["aggregate"]:,.1f}', f'{one["missed"][-1]}',
    ]  # fmt: skip
    good = [
      0, 0, max(one['spearman'], 0), *(k / cost for k, cost in zip(ks, one['costs'])),
      1 / one['aggregate_over_oracle'], 1 - one['missed'][-1] / ks[-1],
    ]  # fmt: skip
    rows.append((one['name'], cells, good))
  some = next(iter(metrics['methods'].values()))
  oracle = some['aggregate'] / some['aggregate_over_oracle']
  cells = ['0', '', '1', *(f'{k:,}' for k in ks), f'{oracle:,.1f}', '0']
  return heads, [*rows, ('oracle', cells, [0, 0, *[1] * (len(ks) + 3)])]


def _methods(metrics: dict[str, Any]) -> str:
  heads, rows = _compare(metrics)
  ks, n = metrics['settings']['ks'], metrics['nodes']['count']
  words = (
    f'Passes are the cost of the ranking in forward passes per pair; a backward pass counts as two, and the exact '
    f'sweep costs {n:,}. Seconds are for all pairs, without compilation. Spearman is the rank correlation with the '
    f'truth. The next columns are the passes, including those of the ranking, until the true top '
    f'{", ".join(map(str, ks))} have been patched; the same for all K up to {metrics["curve"]["k"][-1]:,}, a '
    f'geometric mean with weights 1/K; and the number of nodes of the true top {ks[-1]} that are not among the first '
    f'{ks[-1]} of the method. The oracle knows the truth. Searches without gradients had {metrics["joint"]:,} joint '
    f'patches each.'
  )
  same = [name for name in metrics['settings']['methods'] if name not in metrics['methods']]
  if same:
    words += f' Without queries or keys among the nodes, {" and ".join(same)} would be the same as without the fix.'
  unit = 'colour: the correlation, the passes of the oracle over those of the method, the share not missed'
  return page.section('The methods', words, _table('', heads, rows, unit))


def _false_negatives(metrics: dict[str, Any], key: str) -> str:
  one, k = metrics['methods'][key], metrics['settings']['ks'][-1]
  nodes, count = one['false_negatives'], one['missed'][-1]
  heading = f'Nodes missed by {one["name"]}'
  words = f'{count or "None"} of the true top {k} are not among the first {k} of {one["name"]}. '
  if not count:
    return page.section(heading, words, '')
  words += (
    f'{"Listed" if len(nodes) == count else f"The {len(nodes)} that it places worst"}, worst placed first; the last '
    f'column names the methods that have them among their first {k}.'
  )
  rows = []
  for m in nodes:
    numbers = [f'{m["rank"]}', f'{m["place"]:,}', f'{m["contribution"]:.4g}', f'{m["score"]:.4g}']
    cells = [*numbers, ', '.join(m['found_by']) or 'none']
    rows.append((m['label'], cells, [0, m['rank'] / m['place'], 0, 0, 0]))
  heads = ['true rank', 'its place', 'contribution', 'its estimate', 'found by']
  table = _table('node', heads, rows, 'colour: the true rank over its place')
  return page.section(heading, words, table)


def _largest(measured: Measurement) -> str:
  names = {key: one.name for key, one in measured.found.items() if one.effects is not None}
  nodes = measured.metrics['top'][:_ROWS]
  rows = []
  for rank, top in enumerate(nodes, 1):
    places = [top['places'][key] for key in names]
    cells = [f'{top["contribution"]:.4g}', f'{top["mean"]:+.4g}', *(f'{p:,}' for p in places)]
    share = top['contribution'] / nodes[0]['contribution']
    rows.append((top['label'], cells, [share, 0, *(min(1, rank / p) for p in places)]))
  words = (
    'Contribution, signed mean effect, and the place of each node in the methods that estimate effects, '
    'largest first.'
  )
  unit = 'colour: the contribution over the largest; the true rank over the place, full up to the true rank'
  table = _table('node', ['contribution', 'mean', *names.values()], rows, unit)
  return page.section('Places of the largest nodes', words, table)


def _bounds(metrics: dict[str, Any]) -> str:
  judged = [one for one in metrics['methods'].values() if 'verified' in one]
  one, k = judged[0]['verified'], metrics['settings']['ks'][-1]
  words = (
    f'Bounds that do not use the truth. The first {one["path"]:,} nodes of each method are patched; the threshold '
    f'is contribution number {k} among them. {one["checks"]:,} nodes drawn from the others are patched, and '
    f'{one["subsets"]:,} random subsets of those still left. With 95 % confidence at most the given number of nodes '
    'exceed the threshold, and with 95 % no node that is left contributes more than the bound; the true values follow.'
  )
  rows = [
    (
      one['name'],
      [f'{v["spent"]:,.0f}', f'{v["threshold"]:.4g}', f'{v["missed_bound"]:,}', f'{v["missed"]:,}',
       f'{v["largest_bound"]:.4g}', f'{v["largest"]:.4g}'],
      [0] * 6,
    )
    for one in judged
    for v in [one['verified']]
  ]  # fmt: skip
  heads = [
    'passes',
    'threshold',
    'beyond: at most',
    'in truth',
    'largest left: at most',
    'in truth',
  ]
  return page.section('Bounds on the missed nodes', words, _table('', heads, rows, ''))


def _table(corner: str, heads: Sequence[str], rows: Sequence[tuple], unit: str) -> str:
  """A table whose rows are (name, cells, weights)."""
  names, cells, weights = zip(*rows)
  return page.words(cells, weights, rows=names, columns=heads, corner=corner, unit=unit)
