"""Second phase of an evaluation: writes the results of `measure` as a table, figures and pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mechjax import files
from mechjax.eval_sae.measure import Measured
from mechjax.eval_sae.subjects import Subject, Subjects, vocabulary
from mechjax.sae import features
from mechjax.sae.evaluation import EvaluationReport, SiteReport
from mechjax.viz import page, pareto
from mechjax.viz.dashboard import DashboardHeader, dashboard

COLUMNS = {
  'L0': lambda r, s: f'{s.l0:.1f}',
  'delta loss': lambda r, s: f'{r.delta_loss:.4f}',
  'recovered (mean)': lambda r, s: f'{r.recovered_mean:.4f}',
  'recovered (zero)': lambda r, s: f'{r.recovered_zero:.4f}',
  'KL': lambda r, s: f'{r.kl:.4f}',
  'FVU': lambda r, s: f'{s.fvu:.4f}',
  'never active': lambda r, s: f'{100 * s.dead_fraction:.1f} %',
  'shrinkage': lambda r, s: f'{s.shrinkage:.3f}',
  'uniformity': lambda r, s: f'{s.uniformity:.3f}',
}


def write(measured: Measured) -> None:
  """Prints the table, and writes `evaluation.json`, `evaluation.html`, the figure and the pages of features.

  Args:
    measured: results of `measure`.
  """
  subjects, reports, out = measured.subjects, measured.reports, measured.out
  print(table(subjects, reports))
  files.write_json(out / 'evaluation.json', _replace_nan(_metadata(subjects, reports)))
  title = f'{subjects.model.name}, {subjects.site}'
  if points := results(subjects, reports):
    pareto.picture(points, out / 'pareto.png', title=title)
  (out / 'evaluation.html').write_text(_page(subjects, reports, title))
  for subject in subjects.dictionaries:
    if subject.name in measured.features:
      report, seen = reports[subject.name].sites[subjects.site], measured.features[subject.name]
      path = out / f'features_{subject.name.replace("/", "_")}.html'
      seen.save(path.with_suffix('.npz'))
      path.write_text(_dashboard(subjects, subject, report, seen))
      print(f'wrote {path}')
  print(f'wrote evaluation.json, evaluation.html and the figure of loss against sparsity to {out}')


def _metadata(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> dict[str, Any]:
  """Contents of `evaluation.json`."""
  return {
    'about': subjects.about,
    'site': subjects.site,
    'target': subjects.target,
    'limit': subjects.limit,
    'dictionaries': {
      s.name: {'kind': s.kind, 'setting': s.setting, **reports[s.name].metrics()}
      for s in subjects.dictionaries
    },
  }


def results(
  subjects: Subjects, reports: Mapping[str, EvaluationReport]
) -> dict[str, list[pareto.Trained]]:
  """Points of the figure; dictionaries whose latents are never active are left out."""
  points: dict[str, list[pareto.Trained]] = {}
  for s in subjects.dictionaries:
    report = reports[s.name]
    l0 = report.sites[subjects.site].l0
    if l0 > 0:
      points.setdefault(s.kind, []).append(pareto.Trained(l0, report.delta_loss, s.setting))
  return points


def table(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> str:
  """Table of all metrics, as Markdown."""
  first = next(iter(reports.values()))
  lines = [
    f'{first.predicted:,} tokens predicted, loss {first.loss:.4f}; with zero instead of the site '
    f'{first.loss_zero:.4f}, with its mean {first.loss_mean:.4f} nats',
    '',
    '| dictionary | setting | ' + ' | '.join(COLUMNS) + ' |',
    '|---' * (2 + len(COLUMNS)) + '|',
  ]
  for s, row in zip(subjects.dictionaries, _cells(subjects, reports)):
    lines.append(f'| {s.kind} | {s.setting} | ' + ' | '.join(row) + ' |')
  return '\n'.join(lines)


def _cells(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> list[list[str]]:
  """Metrics of each dictionary in the order of `COLUMNS`."""
  found = [reports[s.name] for s in subjects.dictionaries]
  return [
    [show(report, report.sites[subjects.site]) for show in COLUMNS.values()] for report in found
  ]


def _dashboard(
  subjects: Subjects, subject: Subject, report: SiteReport, seen: features.Features
) -> str:
  model = subjects.model
  header = DashboardHeader(
    model=model.name,
    site=subjects.site,
    architecture=f'{subject.kind}, {subject.setting}',
    l0=report.l0,
    fvu=report.fvu,
    text=subjects.text,
  )
  title = f'{subject.kind} of {model.name}, {subjects.site}'
  return dashboard(seen, vocabulary(model), title=title, header=header)


def _page(subjects: Subjects, reports: Mapping[str, EvaluationReport], title: str) -> str:
  rows = [f'{s.kind} {s.setting}' for s in subjects.dictionaries]
  first = next(iter(reports.values()))
  lead = (
    f'{first.predicted:,} predicted tokens. The model has a loss of {first.loss:.4f} nats per token; with zero in '
    f'place of the site {first.loss_zero:.4f}, with its mean {first.loss_mean:.4f}.'
  )
  metrics = page.words(
    _cells(subjects, reports),
    [[0.0] * len(COLUMNS)] * len(rows),
    rows=rows,
    columns=[*COLUMNS],
    corner='dictionary',
    unit='losses and KL in nats per token; never active: latents that were not active on any token seen',
  )
  points = results(subjects, reports)
  body = [pareto.section(points, title=title)] if points else []
  body.append(page.section('All metrics', 'Every dictionary on the same tokens.', metrics))
  return page.page(f'Dictionaries of {title}', lead, body, 'made by mechjax.eval_sae')


def _replace_nan(metadata: Any) -> Any:
  """Replaces NaN by null, since JSON has no NaN."""
  return json.loads(json.dumps(metadata), parse_constant=lambda _: None)
