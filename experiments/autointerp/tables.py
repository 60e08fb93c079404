"""Tables of the results: for the terminal, and for the page."""

from __future__ import annotations

from typing import Any

from experiments.facts.cells import Table, give

Results = dict[str, Any]
CONTROLS = {
  'own': '', 'shuffled': 'another latent', 'table': 'token table', 'table_shuffled': "another latent's token table",
}  # fmt: skip


def make_tables(results: Results) -> list[Table]:
  """All tables but that of the latents."""
  return [tabulate_scores(results), tabulate_differences(results), tabulate_requests(results)]


def tabulate_scores(results: Results) -> Table:
  """Means over latents by scorer, explainer and control."""
  rows = [
    [
      row['scorer'],
      _name(row),
      give(row['mean'], row['standard_error']),
      give(row['median']),
      *(give(row['more'].get(name)) for name in ('balanced_accuracy', 'auroc_hard', 'mass')),
      str(row['n']),
      str(row['n_undefined']),
      str(row['n_failed']),
    ]
    for row in results['rows']
  ]
  return Table(
    'Scores of explanations',
    'Mean over latents ± one standard error. simulation: correlation of predicted and true activations; detection, '
    'fuzzing, surprisal, embedding: AUROC, 0.5 by chance; intruder: share that is right, 0.2 by chance. "of another '
    'latent" and "token table" are controls. AUROC (hard): against texts on which a latent with a near decoder row is '
    'active. balanced: balanced accuracy at 0.5. mass: probability of all answers together. undefined: latents '
    'without a score; failed: replies.',
    ['scorer', 'explanation', 'score', 'median', 'balanced', 'AUROC (hard)', 'mass', 'n', 'undefined', 'failed'],
    rows,
  )  # fmt: skip


def tabulate_differences(results: Results) -> Table:
  """Paired differences of explanations and their controls."""
  rows = [
    [
      d['scorer'],
      d['method'],
      CONTROLS[d['control']],
      give(d['own']),
      give(d['other']),
      give(d['difference'], d['standard_error']),
      str(d['n']),
    ]
    for d in results['differences']
  ]
  return Table(
    'Explanations against their controls',
    'Differences are paired by latent, ± one standard error over latents.',
    ['scorer', 'explanation', 'against', 'own', 'control', 'difference', 'n'],
    rows,
  )


def tabulate_requests(results: Results) -> Table:
  """Requests, tokens and cost by provider and purpose."""
  rows = [
    [
      row['provider'],
      row['purpose'],
      f'{row["requests"]:,}',
      f'{row["hits"]:,}',
      f'{row["failed"]:,}',
      f'{row["tokens_in"]:,}',
      f'{row["tokens_out"]:,}',
      f'{row["cost"]:.4f}',
    ]
    for row in results['requests']
  ]
  return Table(
    'Requests',
    'Requests of this run. Those that were answered from the file of replies cost nothing again; those that failed are '
    'sent again by the same command.',
    ['provider', 'purpose', 'requests', 'kept', 'failed', 'tokens in', 'tokens out', 'cost'],
    rows,
  )  # fmt: skip


def tabulate_latents(results: Results) -> Table:
  """Explanations of every latent, and the scores of their own."""
  names = [
    *dict.fromkeys(
      (row['scorer'], row['method']) for row in results['rows'] if row['control'] == 'own'
    )
  ]
  rows = []
  for one in results['latents']:
    texts = '\n'.join(
      f'{method}: {found["text"] or found["reason"]}'
      for method, found in one['explanations'].items()
    )
    scores = [give(one['scores'].get(f'{scorer} {method}')) for scorer, method in names]
    rows.append([str(one['latent']), f'{one["density"]:.4f}', texts, *scores])
  return Table(
    'Latents',
    'density: share of the tokens on which the latent is active. Explanations are texts of a model, and their scores '
    'are next to them.',
    ['latent', 'density', 'explanations', *(f'{scorer}, {method}' for scorer, method in names)],
    rows,
  )  # fmt: skip


def _name(row: Results) -> str:
  """Explanation that a row is about."""
  if row['control'] == 'own':
    return row['method'] if row['method'] != 'none' else ''
  if row['control'] == 'shuffled':
    return f'{row["method"]}, of another latent'
  return CONTROLS[row['control']]
