"""Results in files: tables, JSON, CSV, the dashboard of the latents, and a page with the picture.

`autointerp.json` has the plain results, from which the tables and most of the page are made; `explanations.json` has
the scored excerpts and predictions as well. Texts of models and of the web are data everywhere: pages escape them, and
cells of `scores.csv` do not begin a formula.
"""

from __future__ import annotations

import dataclasses
import html
import math
from pathlib import Path
from typing import Any

from experiments import outputs
from experiments.autointerp import picture
from experiments.autointerp.measure import Measured
from experiments.autointerp.settings import Settings
from experiments.autointerp.tables import make_tables, tabulate_latents
from experiments.facts.report import make_section
from mechjax import files
from mechjax.autointerp import exporting
from mechjax.autointerp.report import Report
from mechjax.viz import page
from mechjax.viz.dashboard import DashboardHeader, dashboard

NAME = 'autointerp'
MORE = ('balanced_accuracy', 'auroc_hard', 'mass')
"""Further figures of scores that the table shows."""

Results = dict[str, Any]


def write(measured: Measured, settings: Settings, command: str) -> Results:
  """Prints the tables, writes all files to the output directory, and returns the plain results."""
  results = make_results(measured, settings) | {'command': command}
  out = Path(settings.out)
  print(format_text(results))
  files.write_json(out / f'{NAME}.json', results)
  exporting.write_csv(out / 'scores.csv', measured.explanations, measured.scores)
  exporting.write_json(out / 'explanations.json', measured.explanations, measured.scores)
  (out / 'dashboard.html').write_text(make_dashboard(measured, settings), encoding='utf-8')
  picture.draw(measured.scores, out / f'{NAME}.png', _find_maxima(measured))
  (out / f'{NAME}.html').write_text(document(results, measured), encoding='utf-8')
  print(
    f'wrote {NAME}.json, scores.csv, explanations.json, dashboard.html, {NAME}.html and {NAME}.png to {out}'
  )
  return results


def make_results(measured: Measured, settings: Settings) -> Results:
  """Plain results, ready for JSON."""
  report, subject = Report(measured.scores), measured.subject
  more = {name: _summarise_more(measured, name) for name in MORE}
  rows = [
    dataclasses.asdict(row)
    | {
      'more': {
        name: found.get((row.scorer, row.method, row.control)) for name, found in more.items()
      }
    }
    for row in report.rows
  ]
  collected = measured.collected
  return outputs.make_plain({
    'versions': outputs.list_versions(),
    'settings': dataclasses.asdict(settings),
    'model': outputs.describe_model(settings.model) | {'fingerprint': subject.fingerprint},
    'site': subject.site,
    'notes': subject.notes,
    'figures': measured.figures,
    'providers': measured.asked.identities,
    'left_out': {str(k): v for k, v in collected.left_out.items()},
    'fewer': {str(k): v for k, v in collected.fewer.items()},
    'rows': rows,
    'differences': [dataclasses.asdict(d) for d in report.differences],
    'conclusions': report.conclusions,
    'requests': measured.asked.summarise(),
    'latents': [_describe_latent(measured, one.latent, one.density) for one in collected.examples],
  })  # fmt: skip


def _summarise_more(measured: Measured, name: str) -> dict[tuple[str, str, str], float]:
  """Mean of a further figure, by scorer, method and control."""
  if not any(name in score.more for score in measured.scores):
    return {}
  rows = Report(measured.scores, name).rows
  return {(row.scorer, row.method, row.control): row.mean for row in rows}


def _describe_latent(measured: Measured, latent: int, density: float) -> Results:
  own = [s for s in measured.scores if s.latent == latent and s.control == 'own']
  return {
    'latent': latent,
    'density': density,
    'explanations': {
      e.method: {'text': e.text, 'reason': e.reason}
      for e in measured.explanations
      if e.latent == latent
    },
    'scores': {f'{s.scorer} {s.method}': s.value for s in own},
  }


def format_text(results: Results) -> str:
  """All tables, as Markdown, then the sentences of the comparison with the controls."""
  parts = [f'{table.markdown()}\n\n{table.text}' for table in make_tables(results)]
  return '\n\n'.join([*parts, '\n'.join(f'- {line}' for line in list_remarks(results))])


def list_remarks(results: Results) -> list[str]:
  """Sentences: each explainer against its controls, what is missing, and notes."""
  failed = sum(row['failed'] for row in results['requests'])
  again = f'{failed} requests failed; the same command sends them again'
  return [
    *results['conclusions'],
    *([again] if failed else []),
    *(f'latent {latent} is left out: {why}' for latent, why in results['left_out'].items()),
    *(f'latent {latent} has fewer excerpts: {why}' for latent, why in results['fewer'].items()),
    *results['notes'],
  ]


def _find_maxima(measured: Measured) -> dict[int, float]:
  return {one.latent: one.maximum for one in measured.collected.examples}


def make_dashboard(measured: Measured, settings: Settings) -> str:
  """The page of the latents, with their explanations, scores and predictions."""
  subject = measured.subject
  header = DashboardHeader(
    model=subject.model.name,
    site=subject.site,
    architecture=type(subject.sae).__name__,
    l0=measured.figures['l0'],
    fvu=measured.figures['fvu'],
    text=settings.text,
  )
  return dashboard(
    measured.collected.features,
    subject.pieces,
    title=f'Explanations of latents of {subject.model.name}, {subject.site}',
    header=header,
    explanations=measured.explanations,
    scores=measured.scores,
  )


def document(results: Results, measured: Measured) -> str:
  """Writes the page: the comparison with the controls, charts, and tables."""
  tables = [*make_tables(results), tabulate_latents(results)]
  remarks = ''.join(f'<li>{html.escape(line)}</li>' for line in list_remarks(results))
  text = 'Each explainer against the explanations of other latents and against the token table.'
  sections = [
    page.section('Conclusions', text, f'<ul>{remarks}</ul>'),
    *picture.sections(measured.scores, measured.explanations, _find_maxima(measured)),
    *map(make_section, tables),
  ]
  fvu = results['figures']['fvu']
  shown = '' if fvu is None or math.isnan(fvu) else f', FVU {fvu:.3f}'
  lead = (
    f'{results["model"]["name"]}, {results["site"]}, {results["settings"]["dictionary"]}: '
    f'{len(results["latents"])} latents, L0 {results["figures"]["l0"]:.1f}{shown}, '
    f'{results["figures"]["tokens"]:,.0f} tokens of {results["settings"]["text"]}. Scores by '
    f'{results["providers"]["scores"]}; explanations by {results["providers"]["explanations"]}.'
  )
  versions = ', '.join(f'{package} {version}' for package, version in results['versions'].items())
  footer = f'{results.get("command", f"experiments.{NAME}")} ({versions})'
  return page.page('Explanations of latents and their controls', lead, sections, footer)
