"""First phase of an evaluation: computes everything that `report` writes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import extras, files, harvest, sites
from mechjax.errors import SAEError, unknown
from mechjax.eval_sae.settings import EvalSettings
from mechjax.eval_sae.subjects import Subject, Subjects, find_subjects
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, features
from mechjax.sae.evaluation import (
  CrossLayerPart,
  Evaluation,
  EvaluationReport,
  SiteReport,
  compare,
  next_tokens,
)


@dataclasses.dataclass(frozen=True)
class Measured:
  """Results of an evaluation.

  Attributes:
    subjects: the evaluated dictionaries.
    reports: metrics of each dictionary, keyed by its name.
    features: features of latents, keyed by the names of the dashboards: of the dictionary, and of its site if it has
      several.
    out: output directory.
  """

  subjects: Subjects
  reports: dict[str, EvaluationReport]
  features: dict[str, features.Features]
  out: Path


def measure(settings: EvalSettings) -> Measured:
  """Evaluates every dictionary, and collects features of those that get a dashboard.

  Args:
    settings: settings of the evaluation.

  Raises:
    SAEError: the settings contradict the run or each other.
    SiteError, WeightsError, FetchError: a site, dictionary or model is not available.
  """
  out = Path(settings.out or Path(settings.run) / 'evaluation')
  files.check_directory(out, SAEError)
  subjects = find_subjects(settings, out)
  chosen = _with_dashboard(settings, subjects)
  out.mkdir(parents=True, exist_ok=True)  # before hours of computing, not after
  reports = _evaluate(settings, subjects)
  seen = {
    name: _features(settings, subjects, s, site, reports[s.name].sites[site])
    for name, (s, site) in chosen.items()
  }
  return Measured(subjects, reports, seen, out)


def _evaluate(settings: EvalSettings, subjects: Subjects) -> dict[str, EvaluationReport]:
  targets = {site: target for site, target in subjects.targets.items() if target}
  candidates: dict[str, Any] = {}
  for s in subjects.dictionaries:
    saes = {site: one for site, (one, _) in s.dictionaries.items()}
    params = {site: params for site, (_, params) in s.dictionaries.items()}
    evaluation = Evaluation(subjects.model.apply, saes, targets, subjects.limits)
    candidates[s.name] = evaluation, params
  batches = [next_tokens(*b) for b in subjects.iter_batches(settings.tokens, settings.batch)]
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=len(batches), desc='evaluating', unit='batch') as bar:
    return compare(
      candidates, subjects.model.params, batches, progress=lambda done: bar.update(done - bar.n)
    )


def dashboards(subjects: Subjects) -> dict[str, tuple[Subject, str]]:
  """Every possible dashboard by its name: a dictionary, and its site, which is part of the name if it has several."""
  return {
    f'{s.name}/{site}' if len(s.dictionaries) > 1 else s.name: (s, site)
    for s in subjects.dictionaries
    for site in s.dictionaries
  }


def _with_dashboard(settings: EvalSettings, subjects: Subjects) -> dict[str, tuple[Subject, str]]:
  known = dashboards(subjects)
  if settings.dashboard == ('all',):
    return known
  for name in settings.dashboard:
    if name not in known:
      raise unknown(SAEError, 'dictionary', name, known, where='--dashboard')
  return {name: one for name, one in known.items() if name in settings.dashboard}


def _features(
  settings: EvalSettings, subjects: Subjects, subject: Subject, site: str, report: SiteReport
) -> features.Features:
  """Features of latents that are ever active; a random sample if there are too many."""
  model, at = subjects.model, sites.parse(site)
  sae, params = subject.dictionaries[site]
  if isinstance(sae, CrossLayerPart):
    sae, params = sae.sae.layer_dictionary(params, sae.layer)
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  batches = subjects.iter_batches(settings.feature_tokens, settings.batch)
  active = np.flatnonzero(report.density > 0)
  if settings.latents and len(active) > settings.latents:
    active = np.sort(
      np.random.default_rng(settings.seed).choice(active, settings.latents, replace=False)
    )
  return features.collect(
    lambda tokens: read(model.params, tokens)[at],
    sae,
    params,
    extras.require('tqdm', 'models').tqdm(
      [*batches], desc=f'features of {subject.name}', unit='batch'
    ),
    latents=active,
    unembed=make_effects(model, sae),
    limit=subjects.limits.get(site, math.inf),
    seed=settings.seed,
    site=site,
  )


def make_effects(
  model: LanguageModel, sae: Architecture
) -> Callable[[jax.Array], jax.Array] | None:
  """Function from directions to their effects on logits per unit, without the scale of the final norm.

  None if the dictionary's output is not as wide as the residual stream.
  """
  if sae.target_width != model.d_model:
    return None

  def effects(directions: jax.Array) -> jax.Array:
    # The final norm divides a direction by its own root mean square; the factor undoes that.
    lengths = jnp.linalg.norm(directions, axis=-1, keepdims=True) / math.sqrt(model.d_model)
    return lengths * model.unembed(directions)

  return effects
