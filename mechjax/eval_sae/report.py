"""The evaluation from settings to files, for `__main__` and for who wants it in a program of his own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import extras, files, harvest, sites
from mechjax.errors import nearest
from mechjax.eval_sae.settings import Settings
from mechjax.eval_sae.subjects import Subject, Subjects, found, vocabulary
from mechjax.models.language_model import LanguageModel
from mechjax.sae import features
from mechjax.sae.comparing import compare
from mechjax.sae.errors import SAEError
from mechjax.sae.evaluate import Evaluation
from mechjax.sae.figures import Report, SiteReport
from mechjax.sae.sums import next_tokens
from mechjax.viz import page, pareto
from mechjax.viz.dashboard import About, dashboard

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


def evaluate(settings: Settings) -> dict[str, Report]:
  """Evaluates and writes everything.

  Args:
    settings: of the evaluation.

  Returns:
    A report for each dictionary, by its name.

  Raises:
    SAEError: settings that do not go together, with the run or with each other.
    SiteError, WeightsError, FetchError: a site, dictionary or model that is not to be had.
  """
  out = Path(settings.out or Path(settings.run) / 'evaluation')
  subjects = found(settings, out)
  chosen = _with_dashboard(settings, subjects)
  out.mkdir(parents=True, exist_ok=True)
  reports = _judged(settings, subjects)
  print(table(subjects, reports))
  words = {
    'about': subjects.about,
    'site': subjects.site,
    'target': subjects.target,
    'limit': subjects.limit,
    'dictionaries': {
      s.name: {'kind': s.kind, 'setting': s.setting, **reports[s.name].figures()}
      for s in subjects.of
    },
  }
  files.write_json(out / 'evaluation.json', _without_nan(words))
  title = f'{subjects.model.name}, {subjects.site}'
  if points := results(subjects, reports):
    pareto.picture(points, out / 'pareto.png', title=title)
  (out / 'evaluation.html').write_text(_page(subjects, reports, title))
  for subject in chosen:
    report = reports[subject.name].sites[subjects.site]
    path = out / f'features_{subject.name.replace("/", "_")}.html'
    seen = _features(settings, subjects, subject, report)
    seen.save(path.with_suffix('.npz'))
    path.write_text(_dashboard(subjects, subject, report, seen))
    print(f'wrote {path}')
  print(f'wrote evaluation.json, evaluation.html and the picture of loss against sparsity to {out}')
  return reports


def results(subjects: Subjects, reports: Mapping[str, Report]) -> dict[str, list[pareto.Trained]]:
  """The points of the picture; a dictionary none of whose latents is ever active has no place there."""
  points: dict[str, list[pareto.Trained]] = {}
  for s in subjects.of:
    report = reports[s.name]
    l0 = report.sites[subjects.site].l0
    if l0 > 0:
      points.setdefault(s.kind, []).append(pareto.Trained(l0, report.delta_loss, s.setting))
  return points


def table(subjects: Subjects, reports: Mapping[str, Report]) -> str:
  """All figures, as Markdown."""
  first = next(iter(reports.values()))
  lines = [
    f'{first.predicted:,} tokens predicted, loss {first.loss:.4f}; with zero instead of the site '
    f'{first.loss_zero:.4f}, with its mean {first.loss_mean:.4f} nats',
    '',
    '| dictionary | setting | ' + ' | '.join(COLUMNS) + ' |',
    '|---' * (2 + len(COLUMNS)) + '|',
  ]
  for s in subjects.of:
    report = reports[s.name]
    numbers = [show(report, report.sites[subjects.site]) for show in COLUMNS.values()]
    lines.append(f'| {s.kind} | {s.setting} | ' + ' | '.join(numbers) + ' |')
  return '\n'.join(lines)


def _judged(settings: Settings, subjects: Subjects) -> dict[str, Report]:
  targets = {subjects.site: subjects.target} if subjects.target else {}
  limits = {subjects.site: subjects.limit} if subjects.limit < math.inf else {}
  candidates: dict[str, Any] = {
    s.name: (
      Evaluation(subjects.model.apply, {subjects.site: s.sae}, targets, limits),
      {subjects.site: s.params},
    )
    for s in subjects.of
  }
  batches = [next_tokens(*b) for b in subjects.batches(settings.tokens, settings.batch)]
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=len(batches), desc='evaluating', unit='batch') as bar:
    return compare(
      candidates, subjects.model.params, batches, progress=lambda done: bar.update(done - bar.n)
    )


def _with_dashboard(settings: Settings, subjects: Subjects) -> list[Subject]:
  if settings.dashboard == ('all',):
    return subjects.of
  names = [s.name for s in subjects.of]
  for name in settings.dashboard:
    if name not in names:
      raise SAEError(
        f'no dictionary {name!r} for a dashboard',
        where=f'there are {names}',
        mend=f'perhaps {nearest(name, names)}',
      )
  return [s for s in subjects.of if s.name in settings.dashboard]


def _features(
  settings: Settings, subjects: Subjects, subject: Subject, report: SiteReport
) -> features.Features:
  """Of latents that are ever active, drawn where there are too many."""
  model, site = subjects.model, sites.parse(subjects.site)
  read = jax.jit(harvest.reap(model.through(subjects.site), sites=[subjects.site]))
  batches = [*subjects.batches(settings.feature_tokens, settings.batch)]
  active = np.flatnonzero(report.density > 0)
  if settings.latents and len(active) > settings.latents:
    active = np.sort(
      np.random.default_rng(settings.seed).choice(active, settings.latents, replace=False)
    )
  return features.collect(
    lambda tokens: read(model.params, tokens)[site],
    subject.sae,
    subject.params,
    extras.require('tqdm', 'models').tqdm(
      batches, desc=f'features of {subject.name}', unit='batch'
    ),
    latents=active,
    unembed=_effects(model, subject),
    limit=subjects.limit,
    seed=settings.seed,
  )


def _dashboard(
  subjects: Subjects, subject: Subject, report: SiteReport, seen: features.Features
) -> str:
  model = subjects.model
  about = About(
    model=model.name,
    site=subjects.site,
    architecture=f'{subject.kind}, {subject.setting}',
    l0=report.l0,
    fvu=report.fvu,
    text=subjects.text,
  )
  title = f'{subject.kind} of {model.name}, {subjects.site}'
  return dashboard(seen, vocabulary(model), title=title, about=about)


def _effects(model: LanguageModel, subject: Subject) -> Callable[[jax.Array], jax.Array] | None:
  """Directions to what one unit of them adds to the logits, up to the final norm's division by the length of all.

  None where what the dictionary says is not as wide as the residual stream.
  """
  if subject.sae.target_width != model.d_model:
    return None

  def effects(directions: jax.Array) -> jax.Array:
    # The final norm divides a direction by its own root mean square, which is taken back here.
    lengths = jnp.linalg.norm(directions, axis=-1, keepdims=True) / math.sqrt(model.d_model)
    return lengths * model.unembed(directions)

  return effects


def _page(subjects: Subjects, reports: Mapping[str, Report], title: str) -> str:
  rows = [f'{s.kind} {s.setting}' for s in subjects.of]
  cells = [
    [show(reports[s.name], reports[s.name].sites[subjects.site]) for show in COLUMNS.values()]
    for s in subjects.of
  ]
  first = next(iter(reports.values()))
  lead = (
    f'{first.predicted:,} predicted tokens. The model has a loss of {first.loss:.4f} nats a token; with zero in '
    f'place of the site {first.loss_zero:.4f}, with its mean {first.loss_mean:.4f}.'
  )
  figures = page.words(
    cells,
    [[0.0] * len(COLUMNS)] * len(rows),
    rows=rows,
    columns=[*COLUMNS],
    corner='dictionary',
    unit='losses and KL in nats a token; never active: latents that were not active on any token seen',
  )
  points = results(subjects, reports)
  body = [pareto.section(points, title=title)] if points else []
  body.append(page.section('All figures', 'Every dictionary on the same tokens.', figures))
  return page.page(f'Dictionaries of {title}', lead, body, 'made by mechjax.eval_sae')


def _without_nan(words: Any) -> Any:
  """JSON has no NaN: null for a figure that has no value."""
  return json.loads(json.dumps(words), parse_constant=lambda _: None)
