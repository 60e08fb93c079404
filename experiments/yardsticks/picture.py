"""The charts of each part, drawn twice: as panels of a PNG and as sections of a page; from the plain results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechjax.viz import charts, curves, page

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Results = dict[str, Any]
Panel = tuple[str, str, Callable[['Axes'], None], str]
"""Title, explanation, function that draws it, and the same as HTML."""
LOWEST_F1 = 0.4
"""Latents are counted from this F1 on; there are thousands below it."""
MATTERS = 0.9
"""A change has a chart if fewer of the answers than this are right without an edit."""
CHANGES = {
  'io': 'Another indirect object', 's': 'Another subject', 'pos': 'The other order of names', 'thing': 'Another thing',
}  # fmt: skip


def draw(name: str, part: Results, path: Path) -> bool:
  """Writes the charts of a part as one PNG; returns whether there are any."""
  panels = make_panels(name, part)
  if not panels:
    return False
  rows = -(-len(panels) // 2)
  fig = charts.figure(19, 5.4 * rows)
  # A figure of its own for each panel: long labels of one do not shrink its neighbour, whose legend would be cut.
  for place, (_, _, fill, _) in zip(fig.subfigures(rows, 2, squeeze=False).flat, panels):
    fill(place.subplots())
  charts.save(fig, path)
  return True


def sections(name: str, part: Results) -> list[str]:
  """The charts of a part as sections of a page."""
  return [page.section(title, text, body) for title, text, _, body in make_panels(name, part)]


def make_panels(name: str, part: Results) -> list[Panel]:
  """Charts of one part; a part without charts has none."""
  return MAKERS[name](part) if name in MAKERS else []


def chart_ioi(part: Results) -> list[Panel]:
  """Edits of attributes by number of latents, and F1 of latents."""
  text = (
    'Share of prompts whose likeliest token is that after the true activation of the changed prompt. Supervised codes '
    'are the upper line.'
  )
  panels = [
    make_lines(
      f'{CHANGES[change]}: latents chosen {words}', text, *_take_edits(part, change, kind),
      xlabel='latents that are set, k', ylabel='share of prompts',
    )
    for change in _find_changes(part)
    for kind, words in (('oracle', 'by an oracle'), ('f1', 'by their F1'))
  ]  # fmt: skip
  every = part['dictionaries']
  return [*panels, _chart_f1(every), _chart_attributes(every)]


def _find_changes(part: Results) -> list[str]:
  """The attributes whose change matters to the answer; the indirect object if none does."""
  shares = {name: _divide(found['as_patched']) for name, found in part['unedited'].items()}
  return [name for name, share in shares.items() if share < MATTERS] or ['io']


def _take_edits(
  part: Results, change: str, kind: str
) -> tuple[dict[str, curves.Points], curves.Points]:
  """Shares by number of latents: of each dictionary and the supervised codes, and without an edit."""
  lines: dict[str, curves.Points] = {}
  for name, one in part['dictionaries'].items():
    found = one['edits'][change][kind]
    if found:
      lines[name] = [float(k) for k in found], [_divide(x['as_patched']) for x in found.values()]
  ends = _find_ends(lines)
  for name, one in part['codes'].items():
    if 'edits' in one:
      lines[f'codes: {name}'] = ends, [_divide(one['edits'][change]['as_patched'])] * 2
  return lines, (ends, [_divide(part['unedited'][change]['as_patched'])] * 2)


def _chart_f1(every: Results) -> Panel:
  """Number of latents with at least some F1."""
  lines: dict[str, curves.Points] = {}
  for name, one in every.items():
    counts = np.array(one['readable']['f1'])
    at = np.arange(len(counts)) / len(counts)
    shown = at >= LOWEST_F1
    lines[name] = at[shown], counts[::-1].cumsum()[::-1][shown].astype(float)
  return make_lines(
    'Latents that detect the value of an attribute',
    'Number of latents with at least this F1 on the second half of the prompts, each for the value that it detects '
    'best on the first half.',
    lines, None, xlabel='F1', ylabel='latents',
  )  # fmt: skip


def _chart_attributes(every: Results) -> Panel:
  """F1 of the best latents of each attribute."""
  columns = sorted({row['feature'] for one in every.values() for row in one['attributes']})
  values = np.array(
    [
      [{row['feature']: row['f1'][0] for row in one['attributes']}[name] for name in columns]
      for one in every.values()
    ],
    float,
  )
  return make_heatmap(
    'F1 of the best latent of each attribute',
    'The latent that is best on the first half of the prompts, on the second half; mean over values of the attribute.',
    values, [*every], columns, ('dictionary', 'attribute'), 'F1',
  )  # fmt: skip


def chart_categories(part: Results) -> list[Panel]:
  """AUC by number of columns, and by category."""
  ks = [float(k) for k in part['ks']]
  lines: dict[str, curves.Points] = {
    name: (ks, [x[0] for x in values]) for name, values in part['sparse'].items()
  }
  ends = _find_ends(lines)
  lines |= {
    f'all dimensions: {name.replace("_", " ")}': (ends, [values[0][0]] * 2)
    for name, values in part['dense'].items()
  }
  values = np.array([*part['of_categories'].values()], float).T
  return [
    make_lines(
      'Categories of words, read from few columns',
      'Mean AUC over categories on held-out words; 0.5 is chance.',
      lines, None, xlabel='columns of the probe, k', ylabel='AUC', linear='',
    ),
    make_heatmap(
      f'AUC of each category, k = {part["ks"][0]}', 'Held-out words; 0.5 is chance.', values,
      [*part['categories']], [*part['of_categories']], ('category', 'basis'), 'AUC', lowest=0.5,
    ),
  ]  # fmt: skip


def chart_cities(part: Results) -> list[Panel]:
  """Disentanglement by number of latents, and by attribute."""
  lines: dict[str, tuple[list[float], list[float]]] = {}
  flat: dict[str, float] = {}
  for kind, of_names in part['edits'].items():
    mean = float(np.mean([one['score'][0] for one in of_names.values()]))
    name, _, k = kind.rpartition(', k = ')
    if name:
      xs, ys = lines.setdefault(name, ([], []))
      xs.append(float(k))
      ys.append(mean)
    else:
      flat[kind] = mean
  ends = _find_ends(lines)
  bound = ends, [flat.pop('no edit')] * 2
  drawn: dict[str, curves.Points] = {**lines}
  drawn |= {kind: (ends, [mean] * 2) for kind, mean in flat.items()}
  last = {
    kind: of_names
    for kind, of_names in part['edits'].items()
    if ', k = ' not in kind or kind.endswith(f', k = {ends[1]:g}')
  }
  columns = [*part['known']]
  values = np.array([[x[name]['score'][0] for name in columns] for x in last.values()], float)
  return [
    make_lines(
      'Cities: disentanglement',
      'Mean of cause and isolation, over country, continent and language. Without an edit it is a half.',
      drawn, bound, xlabel='latents that are set, k', ylabel='disentanglement',
    ),
    make_heatmap(
      'Disentanglement of each attribute', 'Latents: the largest k.', values, [*last], columns,
      ('edit', 'attribute'), 'disentanglement',
    ),
  ]  # fmt: skip


def chart_toys(part: Results) -> list[Panel]:
  """MMCS of dictionaries of toy models by their number of latents, and by L0."""
  sizes = [*part['mmcs']]
  best: dict[str, curves.Points] = {}
  by_l0: dict[str, curves.Points] = {}
  middle = sizes[len(sizes) // 2]
  for i, p in enumerate(part['density']):
    tops = [max(_know(part['mmcs'][n][i]), default=None) for n in sizes]
    kept = [(float(n), top) for n, top in zip(sizes, tops) if top is not None]
    if kept:
      best[f'density {p:g}'] = _take_points(kept)
    pairs = zip(part['l0'][middle][i], part['mmcs'][middle][i])
    dots = [(l0[0], value[0]) for l0, value in pairs if l0[0] and value[0] is not None]
    if dots:
      by_l0[f'density {p:g}'] = _take_points(dots)
  random = [
    (float(n), float(np.mean(_know(x[0] for x in part['random'][n])))) for n in sizes if best
  ]
  panels = []
  if best:
    panels.append(
      make_lines(
        'Toy models: true features that dictionaries find',
        'Mean over true features of the largest cosine with a row (MMCS), at the best sparsity coefficient.',
        best, _take_points(random), xlabel='latents', ylabel='MMCS', bound_name='random rows',
      )
    )  # fmt: skip
  if by_l0:
    panels.append(
      make_lines(
        f'Toy models: dictionaries of {middle} latents', 'A point for each sparsity coefficient.', by_l0, None,
        xlabel='L0, active latents', ylabel='MMCS',
      )
    )  # fmt: skip
  return panels


def make_lines(
  title: str,
  text: str,
  lines: Mapping[str, curves.Points],
  bound: curves.Points | None,
  *,
  xlabel: str,
  ylabel: str,
  linear: str = 'y',
  bound_name: str = 'no edit',
) -> Panel:
  """A panel of curves."""
  given: dict[str, Any] = {
    'curves': lines, 'xlabel': xlabel, 'ylabel': ylabel, 'linear': linear,
    'bound': None if bound is None else (bound_name, bound),
  }  # fmt: skip
  return title, text, lambda ax: curves.lines(ax, title=title, **given), curves.lines_svg(**given)


def make_heatmap(
  title: str,
  text: str,
  values: Float[np.ndarray, 'rows columns'],
  rows: Sequence[str],
  columns: Sequence[str],
  axes: tuple[str, str],
  unit: str,
  lowest: float = 0.0,
) -> Panel:
  """A panel of numbers between `lowest`, which is white, and 1."""
  limit = 1 - lowest

  def fill(ax: Axes) -> None:
    charts.heatmap(
      ax, values - lowest, rows=rows, columns=columns, title=title, xlabel=axes[1], ylabel=axes[0],
      limit=limit, signed=True,
    )  # fmt: skip
    for i, j in np.argwhere(np.isfinite(values)):
      ink = 'white' if abs(values[i, j] - lowest) > 0.55 * limit else charts.INK
      ax.text(j, i, f'{values[i, j]:.2f}', ha='center', va='center', fontsize=8, color=ink)

  notes = [
    [f'{row}, {column}: {unit} {x:.2f}' for column, x in zip(columns, cells)]
    for row, cells in zip(rows, values)
  ]
  body = page.heatmap(
    values.tolist(), notes, rows=rows, columns=columns, title='', axes=axes, limit=1.0
  )
  return title, text, fill, body + page.ramp(1.0, signed=False, unit=unit)


def _find_ends(lines: Mapping[str, curves.Points]) -> list[float]:
  """Smallest and largest x of some curves."""
  every = [x for xs, _ in lines.values() for x in xs]
  return [min(every, default=1.0), max(every, default=1.0)]


def _take_points(points: Sequence[tuple[float, float]]) -> curves.Points:
  """Points in the order of x, as two lists."""
  xs, ys = zip(*sorted(points))
  return [*xs], [*ys]


def _know(pairs: Any) -> list[float]:
  """Values of pairs [value, error] that are not missing."""
  return [value for value, _ in pairs if value is not None]


def _divide(share: Sequence[float]) -> float:
  """The share itself, from [count, total, low, high]."""
  return share[0] / share[1]


MAKERS: dict[str, Callable[[Results], list[Panel]]] = {
  'ioi': chart_ioi,
  'categories': chart_categories,
  'cities': chart_cities,
  'toys': chart_toys,
}
"""Charts of each part; compiled programs have a table alone."""
