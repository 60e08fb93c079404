"""Results as tables, as JSON and as a page; `picture` draws them as PNG.

Everything is written from the plain results alone, so that a page can be made again from `refusal.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.refusal import picture
from mechjax import files
from mechjax.viz import page

UNITS = {
  'bypass': 'log-odds of the behaviour on {0} prompts, direction removed',
  'induce': 'log-odds of the behaviour on {1} prompts, direction added',
  'kl': 'KL(plain || direction removed) on {1} prompts, nats',
}


def write(results: dict[str, Any], out: str) -> None:
  """Prints the tables, and writes `refusal.json`, `refusal.png` and `refusal.html`."""
  print(text(results))
  place = Path(out)
  files.write_json(place / 'refusal.json', results)
  picture.draw(results, place / 'refusal.png')
  (place / 'refusal.html').write_text(document(results), encoding='utf-8')
  print(f'wrote {out}/refusal.json, {out}/refusal.png and {out}/refusal.html')


def text(results: dict[str, Any]) -> str:
  """All tables, as Markdown."""
  parts = [describe(results)]
  for heads, rows in (tabulate_rates(results), tabulate_losses(results), tabulate_heads(results)):
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    parts.append('\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in rows)]))
  return '\n\n'.join(parts)


def describe(results: dict[str, Any]) -> str:
  """The prompts and the choice, as a paragraph."""
  one, settings, (positive, negative) = (
    results['chosen'],
    results['settings'],
    results['study']['sets'],
  )
  signs = ', '.join(
    f'{n} of {m} {_name_set(results, name)}' for name, (n, m) in results['signs'].items()
  )
  failed = ', '.join(f'{name} {n}' for name, n in one['discarded'].items() if n) or 'none'
  return (
    f'First tokens: {", ".join(map(repr, results["first_tokens"]))}. Prompts with the right sign: {signs}. '
    f'Direction: position {one["position"]}, layer {one["layer"]} of {one["layers"]}, length {one["length"]:.2f}, '
    f'rho/sqrt(D) {one["loudness"]:.2f}. Bypass {one["bypass"]:.2f} (plain, {positive}: {one["positive"]:.2f}), induce '
    f'{one["induce"]:.2f} (plain, {negative}: {one["negative"]:.2f}), KL {one["kl"]:.3f} nats. Limits: KL <= '
    f'{settings["kl"]:g}, induce >= {settings["induce"]:g}; {one["passing"]} of {one["candidates"]} candidates pass '
    f'(failed, some several: {failed}).'
  )  # fmt: skip


def tabulate_rates(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Heads and rows of the shares of the three classes."""
  classes = results['study']['classes']
  rows = []
  for name, one in results['rates'].items():
    kind, _, condition = name.partition(' ')
    cells = (
      [one['missing'], '', '']
      if 'missing' in one
      else [format_share(one['shares'][c]) for c in classes]
    )
    rows.append([name_kind(results, kind), condition, *cells])
  return ['prompts', 'condition', *classes.values()], rows


def tabulate_losses(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Heads and rows of the losses."""
  negative = results['study']['sets'][1]
  heads = ['condition', 'loss of unrelated text', f'loss of own completions of {negative} prompts']
  rows = [
    [name, *(f'{one[k]:.3f}' for k in ('text', 'own'))] for name, one in results['losses'].items()
  ]
  return heads, rows


def tabulate_heads(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Heads and rows of the contributions and the attention of the largest heads."""
  inside = results['inside']
  rows = [
    [
      name,
      f'{layer}.{head}',
      *(f'{one[k][i]:.2f}' for k in ('contribution', 'instruction', 'suffix')),
    ]
    for name, one in inside['sets'].items()
    for i, (layer, head) in enumerate(inside['heads'])
  ]
  return ['prompts', 'head', 'contribution', 'attention to instruction', 'to suffix'], rows


def format_share(share: Sequence[float]) -> str:
  """A share with its interval."""
  count, total, low, high = share
  return f'{count / total:.2f} [{low:.2f}, {high:.2f}]'


def name_kind(results: dict[str, Any], kind: str) -> str:
  """The study's own word for 'positive' or 'negative' prompts."""
  return results['study']['sets'][kind != 'positive']


def _name_set(results: dict[str, Any], name: str) -> str:
  part, kind = name.split()
  return f'{name_kind(results, kind)} ({part})'


# --- the page -----------------------------------------------------------------------------------------------


def document(results: dict[str, Any]) -> str:
  """Writes the results as one HTML page."""
  classes = ', '.join(results['study']['classes'].values())
  twin = results['twin']
  equal = (
    f' The weight twin has the tokens of the removal in {twin[0]} of {twin[1]}.' if twin else ''
  )
  sections = [
    *(_score_section(results, score) for score in UNITS),
    _table_section(
      'Completions', f'Shares of {classes} on the test prompts, with 95 % Wilson intervals. '
      f'{results["study"]["note"]}{equal}', tabulate_rates(results), 'share [95 % interval]',
    ),
    _table_section(
      'Losses', 'Mean loss of every prediction under each condition. The completions are those of the plain model, '
      'after their prompts.', tabulate_losses(results), 'nats per token',
    ),
    _cosine_section(results),
    _table_section(
      'Heads', 'The eight heads with the largest direct contributions at the last position of plain prompts, and '
      'the attention of that position to the instruction and to the suffix.', tabulate_heads(results),
      'contribution along the direction at length 1; attention as a share',
    ),
    *_examples(results),
  ]  # fmt: skip
  versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  footer = f'{results.get("command", "experiments.refusal")} ({versions})'
  if 'sha256' in results['model']:
    footer += f'; sha256 of the model {results["model"]["sha256"]}'
  return page.page(picture.make_title(results), describe(results), sections, footer)


def _score_section(results: dict[str, Any], score: str) -> str:
  values = np.array(results['scores'][score], float)
  some = np.abs(values[np.isfinite(values)])
  limit = float(some.max()) if some.size and some.max() > 0 else 1.0
  positions = [str(p) for p in results['settings']['positions']]
  unit = UNITS[score].format(*results['study']['sets'])
  notes = [
    [f'position {p}, layer {layer}: {v:.3f}' for layer, v in enumerate(row)]
    for p, row in zip(positions, values)
  ]
  body = page.heatmap(
    values.T.tolist(), np.array(notes).T.tolist(), rows=[str(n) for n in range(values.shape[1])],
    columns=positions, title='', axes=('layer', 'position'), limit=limit,
  )  # fmt: skip
  return page.section(
    score, 'A row is a layer, a column a position. Hatched: no score.',
    body + page.ramp(limit, signed=True, unit=unit),
  )  # fmt: skip


def _cosine_section(results: dict[str, Any]) -> str:
  cosines = results['inside']['cosines']
  values = np.array([one['mean'] for one in cosines.values()]).T
  limit = float(np.abs(values).max()) or 1.0
  notes = [[f'layer {i}: {v:.3f}' for v in row] for i, row in enumerate(values)]
  body = page.heatmap(
    values.tolist(), notes, rows=[str(i) for i in range(len(values))], columns=[*cosines], title='',
    axes=('layer', 'prompts'), limit=limit,
  )  # fmt: skip
  return page.section(
    'Cosine of the stream with the direction',
    'Before each layer, at the last position of the test prompts; means over prompts.',
    body + page.ramp(limit, signed=True, unit='cosine'),
  )


def _examples(results: dict[str, Any]) -> Iterable[str]:
  for name, one in results['rates'].items():
    if 'examples' in one:
      kind, _, condition = name.partition(' ')
      classes = results['study']['classes']
      cells = [[repr(t), classes[c]] for t, c in zip(one['examples'], one['classes'])]
      yield page.section(
        f'{name_kind(results, kind)} prompts, {condition}', 'The first completions.',
        page.words(
          cells, [[0.0, 0.0]] * len(cells), rows=[str(i + 1) for i in range(len(cells))],
          columns=['completion', 'class'], corner='', unit='',
        ),
      )  # fmt: skip


def _table_section(
  title: str, words: str, table: tuple[list[str], list[list[str]]], unit: str
) -> str:
  heads, rows = table
  cells = [row[1:] for row in rows]
  body = page.words(
    cells, [[0.0] * (len(heads) - 1)] * len(rows), rows=[row[0] for row in rows], columns=heads[1:],
    corner=heads[0], unit=unit,
  )  # fmt: skip
  return page.section(title, words, body)
