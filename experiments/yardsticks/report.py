"""Files of the experiment: results as JSON, and tables as Markdown.

write(results, 'out/yardsticks')              yardsticks.json, yardsticks.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.facts.cells import Table, give, give_pair, give_share
from experiments.yardsticks.measure import RESULTS
from mechjax import files

Results = dict[str, Any]


def write(results: Results, out: str | Path) -> None:
  """Writes all files."""
  out = Path(out)
  files.write_json(out / RESULTS, results)
  with files.whole(out / 'yardsticks.md') as file:
    file.write(to_markdown(results).encode())


def to_markdown(results: Results) -> str:
  """All tables, with the command that makes them."""
  tables = [table for name, part in results['parts'].items() for table in TABLES[name](part)]
  head = f'Command: `{results.get("command", "")}`'
  where = f'{results["model"]["name"]}, {results["site"]}' if 'model' in results else ''
  return '\n\n'.join([x for x in (head, where) if x] + [t.markdown() for t in tables]) + '\n'


def list_ioi(part: Results) -> list[Table]:
  """Tables of the part on the indirect object."""
  changes = [*part['unedited']]
  recovery = [
    [name, *_give_recovery(one.get('recovery', one))]
    for name, one in (*part['codes'].items(), *part['dictionaries'].items())
  ]
  readable = [
    [
      f'{name}, {one["readable"]["n"]} readable latents',
      *_give_recovery(one['readable']['recovery']),
    ]
    for name, one in part['dictionaries'].items()
  ]
  edits = [['no edit', '', *(give_share(part['unedited'][c]['as_patched']) for c in changes)]]
  for name, one in part['codes'].items():
    if 'edits' in one:
      edits.append([name, '', *(give_share(one['edits'][c]['as_patched']) for c in changes)])
  for name, one in part['dictionaries'].items():
    for kind in ('oracle', 'f1'):
      for k in one['edits'][changes[0]][kind]:
        rows = [one['edits'][c][kind][k] for c in changes]
        edits.append([f'{name}, {kind}', str(k), *(give_share(row['as_patched']) for row in rows)])
  shown = [
    [name, row['feature'], give(row['variance']), give(row['best_f1']), str(row['interpretable']),
     ', '.join(row['hidden_by'])]
    for name, one in part['dictionaries'].items() for row in one['attributes']
  ]  # fmt: skip
  sizes = [
    [name, str(one['latents']), give(one['l0'], digits=1), give(one['fvu'], digits=3),
     f'{one["parts_of_pos"][0]} ({one["parts_of_pos"][1]:.2f})']
    for name, one in part['dictionaries'].items()
  ]  # fmt: skip
  return [
    Table(
      'Sufficiency and necessity',
      'Shares of the logit difference, ± standard error, with the reconstruction in place of the activation.',
      ['reconstruction', 'sufficiency', 'necessity'],
      recovery + readable,
    ),
    Table(
      'Answers as after the true patch',
      'Share of prompts, with a 95 % interval, after a change of one attribute by an edit of k latents.',
      ['edit', 'k', *changes],
      edits,
    ),
    Table(
      'Attributes that latents show',
      'Variance of the supervised codes, and latents that detect a value of the attribute.',
      ['dictionary', 'attribute', 'variance', 'best F1', 'readable', 'hidden by'],
      shown,
    ),
    Table(
      'Dictionaries',
      'FVU of the activations at this token; latents that together cover the prompts of one position.',
      ['dictionary', 'latents', 'L0', 'FVU', 'latents for pos (covered)'],
      sizes,
    ),
  ]


def _give_recovery(found: Results) -> list[str]:
  if 'reason' in found:
    return [found['reason'], '']
  return [give_pair(found['sufficiency']), give_pair(found['necessity'])]


def list_categories(part: Results) -> list[Table]:
  """Table of the part on categories of words."""
  rows = [[name, *(give_pair(x, 3) for x in values)] for name, values in part['sparse'].items()]
  rows += [
    [f'{name}, all features', *[give_pair(values[0], 3)] * len(part['ks'])]
    for name, values in part['dense'].items()
  ]
  n = len(part['categories'])
  return [
    Table(
      f'AUC of {n} categories',
      'Mean over categories ± standard error over splits, by columns.',
      ['basis', *map(str, part['ks'])],
      rows,
    )
  ]


def list_cities(part: Results) -> list[Table]:
  """Tables of the part on cities."""
  known = [[name, f'{a}/{b}'] for name, (a, b) in part['known'].items()]
  rows = [
    [kind, name, give(one['cause'][0]), give(one['isolation']), give_pair(one['score'])]
    for kind, of_names in part['edits'].items()
    for name, one in of_names.items()
  ]
  heads = ['edit', 'attribute', 'cause', 'isolation', 'disentanglement']
  return [
    Table(
      'Answers that the model knows',
      'Likeliest of all answers to the question.',
      ['question', 'right'],
      known,
    ),
    Table(f'Edits of {part["kept"]} cities', 'Shares of answers; ± standard error.', heads, rows),
  ]


def list_toys(part: Results) -> list[Table]:
  """Tables of the part on toy models."""
  shape = part['superposition']
  models = [
    [give(p, digits=3), give_pair(shape['represented'][i]), give_pair(shape['dimensions'][i])]
    for i, p in enumerate(part['density'])
  ]
  rows = [
    [str(n), give(p, digits=3), give_pair(part['random'][n][i][0]), *(give_pair(x) for x in of_p)]
    for n, values in part['mmcs'].items()
    for (i, of_p), p in zip(enumerate(values), part['density'])
  ]
  heads = ['latents', 'density', 'random rows', *(f'sparsity {s:g}' for s in part['sparsity'])]
  return [
    Table(
      'Toy models',
      'Mean ± standard error over models.',
      ['density', 'features with a direction', 'dimensions of each'],
      models,
    ),
    Table('MMCS of dictionaries of toy models', 'Mean ± standard error over models.', heads, rows),
  ]


def list_tracr(part: Results) -> list[Table]:
  """Table of the part on compiled programs."""
  rows = [
    [name, str(one['width']), give(one['right']), str(len(one['variables'])),
     f'{max(one["variables"].values()):.1e}', give(one['explained'], digits=4)]
    for name, one in part.items()
  ]  # fmt: skip
  heads = ['program', 'width', 'right outputs', 'variables', 'largest difference', 'codes explain']
  return [Table('Compiled programs', 'The residual stream against the interpreter.', heads, rows)]


TABLES = {
  'ioi': list_ioi,
  'categories': list_categories,
  'cities': list_cities,
  'toys': list_toys,
  'tracr': list_tracr,
}
"""Tables of each part."""
