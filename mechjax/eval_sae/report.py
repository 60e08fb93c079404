"""Second phase of an evaluation: writes the results of `measure` as a table, figures and pages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mechjax import files
from mechjax.eval_sae.measure import Measured, dashboards
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
  for line in list_notes(subjects):
    print(line)
  files.write_json(out / 'evaluation.json', _replace_nan(_metadata(subjects, reports)))
  title = f'{subjects.model.name}, {subjects.site}'
  if points := results(subjects, reports):
    pareto.picture(points, out / 'pareto.png', title=title)
  (out / 'evaluation.html').write_text(_page(subjects, reports, title))
  for name, (subject, site) in dashboards(subjects).items():
    if name in measured.features:
      report, seen = reports[subject.name].sites[site], measured.features[name]
      path = out / f'features_{name.replace("/", "_")}.html'
      seen.save(path.with_suffix('.npz'))
      path.write_text(_dashboard(subjects, subject, site, report, seen))
      print(f'wrote {path}')
  print(f'wrote evaluation.json, evaluation.html and the figure of loss against sparsity to {out}')


def list_notes(subjects: Subjects) -> list[str]:
  """Differences between the evaluation and the files of the dictionaries, as lines."""
  return [f'note on {s.name}: {note}' for s in subjects.dictionaries for note in s.notes]


def _metadata(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> dict[str, Any]:
  """Contents of `evaluation.json`."""
  return {
    'about': subjects.about,
    'site': subjects.site,
    'target': subjects.target,
    'limits': subjects.limits,
    'dictionaries': {
      s.name: {
        'kind': s.kind,
        'setting': s.setting,
        'notes': [*s.notes],
        **reports[s.name].metrics(),
      }
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
    l0 = mean_over_sites(report).l0
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
  if len(subjects.targets) > 1:
    lines += ['', *_table_of_sites(subjects, reports)]
  return '\n'.join(lines)


def _table_of_sites(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> list[str]:
  """Table of the FVU of every site, for dictionaries of several sites."""
  names = [f'{s.kind} {s.setting}' for s in subjects.dictionaries]
  lines = [
    'All dictionaries of a row above are spliced together, and its L0, FVU and the columns after FVU are means over '
    'the sites. FVU of each site:',
    '',
    '| site | ' + ' | '.join(names) + ' |',
    '|---' * (1 + len(names)) + '|',
  ]
  for site in subjects.targets:
    found = [reports[s.name].sites[site].fvu for s in subjects.dictionaries]
    lines.append(f'| {site} | ' + ' | '.join(f'{fvu:.4f}' for fvu in found) + ' |')
  return lines


@dataclasses.dataclass(frozen=True)
class SiteMeans:
  """Metrics of sites, each a mean over all sites of a report."""

  l0: float
  fvu: float
  dead_fraction: float
  shrinkage: float
  uniformity: float


def mean_over_sites(report: EvaluationReport) -> SiteMeans:
  """Mean of each metric over the sites of a report."""
  found = [*report.sites.values()]
  return SiteMeans(
    **{
      f.name: sum(getattr(site, f.name) for site in found) / len(found)
      for f in dataclasses.fields(SiteMeans)
    }
  )


def _cells(subjects: Subjects, reports: Mapping[str, EvaluationReport]) -> list[list[str]]:
  """Metrics of each dictionary in the order of `COLUMNS`."""
  found = [reports[s.name] for s in subjects.dictionaries]
  return [[show(report, mean_over_sites(report)) for show in COLUMNS.values()] for report in found]


def _dashboard(
  subjects: Subjects, subject: Subject, site: str, report: SiteReport, seen: features.Features
) -> str:
  model = subjects.model
  header = DashboardHeader(
    model=model.name,
    site=site,
    architecture=f'{subject.kind}, {subject.setting}',
    l0=report.l0,
    fvu=report.fvu,
    text=subjects.text,
  )
  title = f'{subject.kind} of {model.name}, {site}'
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
  if len(subjects.targets) > 1:
    body.append(_section_of_sites(subjects, reports, rows))
  body.append(page.section('All metrics', 'Every dictionary on the same tokens.', metrics))
  return page.page(f'Dictionaries of {title}', lead, body, 'made by mechjax.eval_sae')


def _section_of_sites(
  subjects: Subjects, reports: Mapping[str, EvaluationReport], rows: list[str]
) -> str:
  """FVU of every site, for dictionaries of several sites that are spliced together."""
  columns = [*subjects.targets]
  found = [[reports[s.name].sites[c].fvu for c in columns] for s in subjects.dictionaries]
  cells = [[f'{fvu:.4f}' for fvu in row] for row in found]
  shades = [[0.0] * len(columns)] * len(rows)
  table_ = page.words(
    cells, shades, rows=rows, columns=columns, corner='dictionary', unit='FVU of each site'
  )
  lead = 'The dictionaries of all sites are spliced together; other metrics of sites are means over them.'
  return page.section('Sites', lead, table_)


def _replace_nan(metadata: Any) -> Any:
  """Replaces NaN by null, since JSON has no NaN."""
  return json.loads(json.dumps(metadata), parse_constant=lambda _: None)
