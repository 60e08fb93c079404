"""The tables of the experiment: cells of text, from the plain results alone.

Numbers of several prompts are means with a standard error over the prompts; of one prompt, with the standard error of a
bootstrap over features.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

KINDS = {
  'tokens': ('embedding',),
  'errors': ('error',),
  'biases': ('attention bias', 'mlp bias'),
  'constants': ('own',),
  'features without a row': ('feature without a row',),
}
"""Columns of the tables of leaves, and their kinds of nodes."""
SCORES = ('completeness', 'replacement')


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with its explanation.

  Attributes:
    title: title.
    text: explanation.
    heads: heads of the columns.
    rows: cells, the first of which names the row.
  """

  title: str
  text: str
  heads: list[str]
  rows: list[list[str]]


def list_tables(results: dict[str, Any]) -> list[Table]:
  """All tables, in order."""
  makers = (
    tabulate_prompts, tabulate_dictionaries, tabulate_layers, tabulate_graphs, tabulate_leaves, tabulate_curves,
    tabulate_agreement, tabulate_prompt_agreement,
  )  # fmt: skip
  made = (make(results) for make in makers)
  return [table for table in made if table.rows]


def give(value: float | None, error: float | None = None, digits: int = 2) -> str:
  """A number with its error; '–' for a missing number."""
  if value is None or not np.isfinite(value):
    return '–'
  shown = f'{value:.{digits}f}'
  return shown + (f' ± {error:.{digits}f}' if error is not None and np.isfinite(error) else '')


def average(values: list[float | None]) -> tuple[float | None, float | None]:
  """Mean and standard error of the numbers that exist."""
  known = np.array([v for v in values if v is not None and np.isfinite(v)])
  if not len(known):
    return None, None
  error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
  return float(known.mean()), error


def iterate_prompts(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
  """Dictionary, prompt and measurements of each graph."""
  return [
    (label, prompt, found)
    for label, one in results['dictionaries'].items()
    for prompt, found in one['prompts'].items()
  ]


def tabulate_prompts(results: dict[str, Any]) -> Table:
  """The prompts and what the model answers."""
  first = next(iter(results['dictionaries'].values()))
  rows = []
  for name, prompt in results['prompts'].items():
    outputs = first['prompts'][name]['outputs']
    likely = [f'{t["text"]!r} {t["probability"]:.2f}' for t in outputs['tokens'][:3]]
    answer = outputs['answer']
    told = (
      f'{answer["text"]!r} {answer["probability"]:.2f}, rank {answer["rank"]}' if answer else '–'
    )
    explained = sum(t['probability'] for t in outputs['tokens'])
    count = f'{len(outputs["tokens"])} ({explained:.2f})'
    rows.append([name, prompt['text'], ', '.join(likely), told, count])  # fmt: skip
  heads = ['prompt', 'text', 'likeliest outputs', 'answer', 'explained outputs (probability)']
  return Table('Prompts', 'What the model predicts after each prompt.', heads, rows)


def tabulate_dictionaries(results: dict[str, Any]) -> Table:
  """Quality of each dictionary on held-out text."""
  rows = []
  for label, one in results['dictionaries'].items():
    if (e := one['evaluation']) is None:
      continue
    recovered = None
    if 'loss_mean' in e:
      recovered = (e['loss_mean'] - e['loss_spliced']) / (e['loss_mean'] - e['loss'])
    features = average([found['features'] for found in one['prompts'].values()])[0]
    rows.append([
      label, one['kind'], give(np.mean(e['fvu']), digits=3), give(np.mean(e['l0']), digits=1),
      give(e['loss'], digits=3), give(e['loss_spliced'], digits=3), give(recovered, digits=3),
      give(features, digits=0),
    ])  # fmt: skip
  heads = [
    'dictionary',
    'kind',
    'mean FVU',
    'mean L0',
    'loss',
    'loss, all spliced',
    'recovered (mean ablation)',
    'active features of a prompt',
  ]
  text = (
    f'Text: {results["text"]}. FVU and L0 are means over layers; losses in nats per token, with the outputs of all '
    f'MLPs replaced at once. The FVU of neurons is that of the output before a norm after the MLP.'
  )
  return Table('Dictionaries', text, heads, rows)


def tabulate_layers(results: dict[str, Any]) -> Table:
  """FVU of each layer."""
  found = {
    label: one['evaluation']['fvu']
    for label, one in results['dictionaries'].items()
    if one['evaluation']
  }
  n = max((len(fvu) for fvu in found.values()), default=0)
  rows = [
    [str(layer), *(give(fvu[layer], digits=3) for fvu in found.values())] for layer in range(n)
  ]
  return Table('FVU by layer', 'Fraction of variance unexplained.', ['layer', *found], rows)


def tabulate_graphs(results: dict[str, Any]) -> Table:
  """Sizes, errors and scores of the graphs."""
  rows = []
  for label, prompt, found in iterate_prompts(results):
    small, scores = found['pruned'], found['scores']
    rows.append([
      label, prompt, str(found['features']), str(found['rows']), f'{found["row_error"]["largest"]:.1e}',
      *(give(scores[name]) for name in SCORES), f'{small["features"]} / {small["links"]}',
      *(give(small[name]) for name in SCORES), give(found['seconds'], digits=0),
    ])  # fmt: skip
  heads = [
    'dictionary',
    'prompt',
    'features',
    'rows',
    'largest row error',
    *SCORES,
    'pruned: features / links',
    *SCORES,
    'seconds',
  ]
  settings = results['settings']
  text = (
    f'Row error: what is missing from the sum of a row, relative to its largest entry. Pruned to '
    f'{settings["keep_nodes"]} of the influence, with the dropped features as errors. Seconds are those of the rows.'
  )
  return Table('Graphs', text, heads, rows)


def tabulate_leaves(results: dict[str, Any]) -> Table:
  """Signed shares and influence by kind of leaf."""
  rows = []
  for label, prompt, found in iterate_prompts(results):
    for what, values in (('signed share', found['shares']), ('influence', found['influence'])):
      cells = [give(sum(values[kind] for kind in kinds)) for kinds in KINDS.values()]
      rows.append([label, prompt, what, *cells])
  text = (
    'Signed shares of the likeliest output (logit against the mean logit) sum to 1 over all leaves. Influence adds '
    'magnitudes over all outputs, relative to that of all leaves.'
  )
  return Table('Leaves', text, ['dictionary', 'prompt', 'measure', *KINDS], rows)


def average_curves(results: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
  """Scores by number of features, for numbers that all prompts have; the last one is the least number of rows.

  Returns:
    By dictionary and number of features, mean and error of each score.
  """
  found: dict[str, dict[int, dict[str, Any]]] = {}
  for label, one in results['dictionaries'].items():
    curves = [prompt['curve'] for prompt in one['prompts'].values()]
    shared = set.intersection(*({int(p['features']) for p in curve} for curve in curves))
    found[label] = {
      n: {
        name: average([p[name] for curve in curves for p in curve if p['features'] == n])
        for name in SCORES
      }
      for n in sorted(shared)
    }
  return found


def tabulate_curves(results: dict[str, Any]) -> Table:
  """Scores by number of features."""
  rows = [
    [label, f'{n:,}', *(give(*point[name]) for name in SCORES)]
    for label, points in average_curves(results).items()
    for n, point in points.items()
  ]
  text = (
    'The explained features with the most influence stay, all others count as errors. Means over prompts with a '
    'standard error over prompts.'
  )
  return Table('Scores by number of features', text, ['dictionary', 'features', *SCORES], rows)


def tabulate_agreement(results: dict[str, Any]) -> Table:
  """Predicted against measured changes, over prompts."""
  rows = []
  for label, one in results['dictionaries'].items():
    found = [prompt['agreement'] for prompt in one['prompts'].values()]
    for name in ('top', 'random'):
      for kind in found[0][name]:
        parts = [f[name][kind] for f in found if kind in f[name]]
        cells = []
        for metric in ('spearman', 'signs'):
          value, error = average([p[metric][0] for p in parts])
          cells.append(give(value, parts[0][metric][1] if len(parts) == 1 else error))
        slope = average([p['slope'] for p in parts])
        largest = max(p['largest_difference'] for p in parts)
        rows.append([label, name, kind, *cells, give(*slope), f'{largest:.1e}'])
  heads = [
    'dictionary',
    'features',
    'measurement',
    'Spearman',
    'equal signs',
    'slope',
    'largest difference',
  ]
  settings = results['settings']
  text = (
    f'The {settings["removed"]} features with the most influence, or {settings["controls"]} random active ones, are '
    f'removed one at a time; changes of the logit of the likeliest output against the mean logit. Constrained: '
    f'everything else frozen, predicted by the own edges of the feature (equal by linearity). Semi-free: norms and '
    f'MLPs react, predicted along all paths, or by the own edges alone. Iterative: features are '
    f'computed again. Slope: measured on predicted, through 0. Means over prompts with a standard error over prompts.'
  )
  return Table('Predicted and measured changes', text, heads, rows)


def tabulate_prompt_agreement(results: dict[str, Any]) -> Table:
  """Predicted against measured changes of each prompt, for the features with the most influence."""
  rows = []
  for label, prompt, found in iterate_prompts(results):
    for kind, one in found['agreement']['top'].items():
      if kind != 'constrained':
        rows.append([label, prompt, kind, *(give(*one[m]) for m in ('spearman', 'signs'))])
  heads = ['dictionary', 'prompt', 'measurement', 'Spearman', 'equal signs']
  text = 'With the standard error of a bootstrap over features.'
  return Table('Predicted and measured changes by prompt', text, heads, rows)
