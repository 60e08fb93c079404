"""Scores of many explanations by many scorers, with their controls, in one call of a provider.

    scores = score(examples, explanations, ask, (Simulation(), Detection(), Fuzzing()), tables=tables)
    print(Report(scores))

All requests of all latents, scorers and controls are sent together, those of one scorer next to each other: a service
works on many at a time, and a local model computes the fixed beginning of a scorer's prompts once.

A score alone means little: a simulator that predicts 0 on every comma has a correlation above 0 with most latents. So
each latent is also scored with the explanation of another one ('shuffled'), on the same excerpts; and where a token
table is given, it is scored in place of the model ('table', 'table_shuffled').

Sharp edges: latents without an explanation ask nothing and have NaN with the reason. Excerpts, wrong marks and rounds
are drawn by `seed`, the latent and the scorer's name, and are the same for all explanations of a latent, so that
differences are paired.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mechjax.autointerp.record import Explanation, LatentExamples, Score
from mechjax.autointerp.scoring.detection import Detection
from mechjax.autointerp.scoring.embedding import Embedding
from mechjax.autointerp.scoring.fuzzing import Fuzzing
from mechjax.autointerp.scoring.plans import (
  ActivationTable,
  ScorePlan,
  Scorer,
  ScoreValues,
  TableScorer,
  check_count,
  make_rng,
)
from mechjax.autointerp.scoring.simulation import Simulation
from mechjax.autointerp.scoring.sources import NO_METHOD, PredictionSource, list_sources
from mechjax.errors import InterpretationError
from mechjax.providers.requests import Provider, Reply, Request


def score(
  examples: Sequence[LatentExamples],
  explanations: Sequence[Explanation],
  ask: Provider,
  scorers: Sequence[Scorer] = (Simulation(), Detection(), Fuzzing()),
  controls: bool = True,
  tables: Mapping[int, ActivationTable] | None = None,
  seed: int = 0,
) -> list[Score]:
  """Scores explanations.

  Args:
    examples: examples of each latent.
    explanations: explanations of these latents, by one or more methods.
    ask: the provider. It is called once, or not at all if there are no requests.
    scorers: scorers with different names.
    controls: whether explanations of other latents, and the tables, are scored as well.
    tables: token table of a latent, by its number; read if `controls` is set.
    seed: decides on excerpts and on the latents that exchange their explanations.

  Returns:
    scores by scorer, latent, method and control, in this order.

  Raises:
    InterpretationError: a latent or the name of a scorer that occurs twice, explanations or tables of latents without
      examples, two explanations of a latent by one method, nothing to score, or a provider that does not keep to its
      protocol.
  """
  examples, explanations, scorers = list(examples), list(explanations), list(scorers)
  tables = tables or {}
  by_latent = {e.latent: e for e in examples}
  _check_inputs(examples, explanations, scorers, tables, seed)
  sources = list_sources(list(by_latent), explanations, tables, controls, seed)
  jobs = [
    _Job(scorer, latent, source, _plan(scorer, by_latent, latent, source, seed))
    for scorer in scorers
    for latent in by_latent
    for source in _choose_sources(scorer, latent, sources[latent])
  ]
  if not jobs:
    raise InterpretationError(
      f'nothing to score: {len(examples)} latents with examples, {len(explanations)} explanations'
    )
  return [_finish(job, replies) for job, replies in zip(jobs, _answer(jobs, ask))]


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
  """A score before its replies."""

  scorer: Scorer
  latent: int
  source: PredictionSource
  plan: ScorePlan


# --- plans ------------------------------------------------------------------------------------------------


def _choose_sources(
  scorer: Scorer, latent: int, sources: Sequence[PredictionSource]
) -> list[PredictionSource]:
  """Sources that a scorer has a place for."""
  if not scorer.needs_explanation:
    return [PredictionSource(NO_METHOD, 'own', latent, text='')]
  tables = isinstance(scorer, TableScorer)
  return [s for s in sources if tables or s.control not in ('table', 'table_shuffled')]


def _plan(
  scorer: Scorer,
  by_latent: Mapping[int, LatentExamples],
  latent: int,
  source: PredictionSource,
  seed: int,
) -> ScorePlan:
  examples, rng = by_latent[latent], make_rng(seed, latent, scorer.name)
  if source.text is not None:
    return scorer.plan(examples, source.text, rng)
  if source.table is not None and isinstance(scorer, TableScorer):
    scale = by_latent[source.explained_by].maximum or 1.0
    return _plan_nothing(scorer.score_table(examples, source.table, scale, rng))
  return _plan_nothing(ScoreValues(math.nan, 0, reason=source.reason))


def _plan_nothing(values: ScoreValues) -> ScorePlan:
  """Plan of a score that is known already."""
  return ScorePlan((), lambda replies: values)


# --- replies ----------------------------------------------------------------------------------------------


def _answer(jobs: Sequence[_Job], ask: Provider) -> list[list[Any]]:
  """Replies of each job: one call of the provider, and one of each embedding."""
  replies: dict[int, list[Any]] = {}
  asked = [i for i, job in enumerate(jobs) if not isinstance(job.scorer, Embedding)]
  requests = [_tag(jobs[i], request) for i in asked for request in jobs[i].plan.requests]
  replies |= _deal(asked, jobs, _ask(ask, requests))
  embeddings = {j.scorer.name: j.scorer for j in jobs if isinstance(j.scorer, Embedding)}
  for name, scorer in embeddings.items():
    of_it = [i for i, job in enumerate(jobs) if job.scorer.name == name]
    texts = [text for i in of_it for text in jobs[i].plan.requests]
    replies |= _deal(of_it, jobs, scorer.embed_all(texts))
  return [replies[i] for i in range(len(jobs))]


def _deal(places: Sequence[int], jobs: Sequence[_Job], replies: Sequence[Any]) -> dict[int, list]:
  """Replies by the place of their job."""
  rest = iter(replies)
  return {i: list(itertools.islice(rest, len(jobs[i].plan.requests))) for i in places}


def _tag(job: _Job, request: Request) -> Request:
  return dataclasses.replace(request, tag=(str(job.latent), job.scorer.name))


def _ask(ask: Provider, requests: Sequence[Request]) -> list[Reply]:
  """Replies of the provider; it is not called without requests."""
  replies = ask(requests) if requests else []
  if len(replies) != len(requests):
    raise InterpretationError(
      f'the provider gave {len(replies)} replies to {len(requests)} requests'
    )
  return replies


def _finish(job: _Job, replies: Sequence[Any]) -> Score:
  values, source = job.plan.evaluate(replies), job.source
  return Score(
    latent=job.latent,
    method=source.method,
    scorer=job.scorer.name,
    control=source.control,
    explained_by=source.explained_by,
    **{field.name: getattr(values, field.name) for field in dataclasses.fields(values)},
  )


# --- checks -----------------------------------------------------------------------------------------------


def _check_inputs(
  examples: Sequence[LatentExamples],
  explanations: Sequence[Explanation],
  scorers: Sequence[Scorer],
  tables: Mapping[int, ActivationTable],
  seed: int,
) -> None:
  check_count('seed', seed)
  known = [e.latent for e in examples]
  _check_unique('latents with examples', known)
  _check_unique(
    'explanations (latent, method)', [(e.latent, e.method) for e in explanations],
    'one explanation by each method; give two settings of an explainer two names',
  )  # fmt: skip
  _check_unique(
    'scorers',
    [scorer.name for scorer in scorers],
    "two settings of one scorer need two names: Simulation(behind='own', name='one_by_one')",
  )
  for kind, latents in (('explanations', [e.latent for e in explanations]), ('tables', tables)):
    if strange := sorted(set(latents) - set(known)):
      raise InterpretationError(f'{kind} of latents without examples: {strange[:5]}')
  if reserved := {e.method for e in explanations} & {NO_METHOD}:
    raise InterpretationError(f'an explanation by the method {reserved}, which means no method')


def _check_unique(name: str, values: Sequence[Any], hint: str | None = None) -> None:
  twice = [value for value, n in collections.Counter(values).items() if n > 1]
  if twice:
    raise InterpretationError(f'{name} that occur twice: {twice[:5]}', hint=hint)
