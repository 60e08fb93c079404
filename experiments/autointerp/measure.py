"""The experiment: activations, latents, excerpts, explanations and scores.

    measured = measure(settings, prepare(settings, mechjax.load))

Activations and counts are files of the output directory, and so is each reply of a model. Everything else is computed
from them in seconds by each run, so that no number can be older than its input: an interrupted run continues with the
same command, a request that failed is sent again, and further explainers and scorers are added to a directory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import outputs
from experiments.autointerp.asking import Asked, open_providers
from experiments.autointerp.examples import collect, fit_tables
from experiments.autointerp.scoring import make_scorers
from experiments.autointerp.settings import FREE, Settings
from experiments.autointerp.subject import (
  Subject,
  count_active,
  draw_latents,
  leave_out_long,
  read_activations,
)
from experiments.saved import Saved
from mechjax.autointerp.collecting import Collected
from mechjax.autointerp.explaining import ExplainSettings, explain
from mechjax.autointerp.record import Explanation, LatentExamples, Score
from mechjax.autointerp.scoring import score
from mechjax.autointerp.token_table import TokenTable
from mechjax.errors import InterpretationError
from mechjax.sae.training import figures


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Results of a run.

  Attributes:
    subject: the model, the dictionary and the text.
    figures: 'l0', 'fvu' and 'tokens' of the dictionary on the text; 'fvu' is NaN for a transcoder.
    collected: excerpts of the latents, and their features.
    explanations: explanations of the latents, by explainer and latent.
    scores: scores of them, and of their controls.
    asked: requests, tokens and cost.
  """

  subject: Subject
  figures: dict[str, float]
  collected: Collected
  explanations: list[Explanation]
  scores: list[Score]
  asked: Asked


def measure(settings: Settings, subject: Subject, log: Callable[[str], Any] = print) -> Measured:
  """Runs the experiment.

  Args:
    settings: settings of the experiment.
    subject: from `prepare`.
    log: called with the name of each step that is computed.

  Raises:
    InterpretationError: the directory holds results of other settings or weights, or too few latents have examples.
    ProviderError: a service without its key.
  """
  asked = open_providers(settings, subject)
  out = outputs.claim(
    settings.out, settings, InterpretationError, FREE, fingerprint=subject.fingerprint
  )
  saved = Saved(out, log, InterpretationError)
  acts = saved.arrays('activations', None, lambda: {'x': read_activations(subject, settings.rows)})
  x = acts['x']
  subject = leave_out_long(subject, x)
  counts = saved.arrays('counts', None, lambda: count_active(subject, x, settings.rows))
  latents = draw_latents(settings, counts, int(subject.kept.sum()))
  collected = collect(settings, subject, x, latents)
  asked.begin(out)
  tables = fit_tables(collected.examples)
  explanations = explain_all(settings, subject, collected.examples, tables, asked)
  log('scores')
  scores = score(
    collected.examples,
    explanations,
    asked.provider('scores'),
    make_scorers(settings, subject.model),
    tables=tables,
    seed=settings.seed,
  )
  about = measure_figures(subject, x, counts)
  return Measured(subject, about, collected, explanations, scores, asked)


def explain_all(
  settings: Settings,
  subject: Subject,
  examples: tuple[LatentExamples, ...],
  tables: dict[int, TokenTable],
  asked: Asked,
) -> list[Explanation]:
  """Explanations by all explainers that are chosen."""
  found: list[Explanation] = []
  for name in settings.explainers:
    if name == 'table':
      found += [table.explain(latent, subject.pieces) for latent, table in tables.items()]
      continue
    form = ExplainSettings(
      style=name,  # type: ignore[arg-type]
      n_shown=settings.shown,
      n_inactive=settings.shown_inactive,
      begin_reply=asked.is_local('explanations'),
    )
    found += explain(examples, asked.provider('explanations'), form)
  return found


def measure_figures(
  subject: Subject, x: np.ndarray, counts: dict[str, np.ndarray]
) -> dict[str, float]:
  """L0 and FVU of the dictionary on the tokens that count."""
  n = int(subject.kept.sum())
  found = {'tokens': float(n), 'l0': counts['tokens'].sum() / n, 'fvu': float('nan')}
  if subject.sae.d_out is None:
    rows, site = {subject.site: x[subject.kept]}, [subject.site]
    found['fvu'] = figures.measure(subject.sae, subject.params, rows, site, site)['fvu']
  return found
