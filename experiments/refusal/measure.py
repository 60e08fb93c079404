"""All steps of a study, and their results as plain values.

    subject = prepare(settings, model)
    results = measure(settings, subject)           ready for JSON; `report` draws from these alone

A finished step is read from the output directory, so that an interrupted run continues with the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import outputs
from experiments.refusal.choosing import Chosen, choose
from experiments.refusal.conditions import REMOVED, TWIN, complete, measure_losses
from experiments.refusal.inside import look_inside
from experiments.refusal.settings import FREE, Settings
from experiments.refusal.studies import Study
from experiments.refusal.subject import Subject
from experiments.saved import Saved
from mechjax.errors import SteeringError
from mechjax.steering import Judgements
from mechjax.steering.judging import CLASSES
from mechjax.steering.selection import SCORES

_EXAMPLES = 4
"""Completions of each condition that are in the results; all are in the output directory."""


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the steps that the output directory does not have.

  Args:
    settings: settings of the study.
    subject: the model and the prompts.
    log: called with the name of each step that is computed.

  Raises:
    SteeringError: as `claim` and `choose`; the scores of a choice that fails are in the output directory.
  """
  fingerprint = subject.model.fingerprint()
  saved = claim(settings, fingerprint, log)
  chosen = choose(settings, subject, saved)
  log(f'chosen: {describe_choice(settings, chosen)}')
  completions = complete(settings, subject, chosen, saved)
  losses = measure_losses(settings, subject, chosen, completions, saved)
  inside = look_inside(settings, subject, chosen, saved)
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'study': _describe_study(subject.study),
    'first_tokens': [subject.model.tokenizer.piece(i) for i in chosen.first_tokens],
    'signs': chosen.count_signs(),
    'chosen': summarise(settings, chosen),
    'scores': dict(zip(SCORES, outputs.make_plain(np.moveaxis(chosen.scores.values, -1, 0)))),
    'loudness': outputs.make_plain(chosen.loudness),
    'rates': {name: judge(subject.study, one) for name, one in completions.items()},
    'twin': compare_twin(completions),
    'losses': losses,
    'inside': inside,
  }


def claim(settings: Settings, fingerprint: str, log: Callable[[str], Any] = print) -> Saved:
  """The results so far; limits and suffix may change within a directory, see `outputs.claim`."""
  out = outputs.claim(settings.out, settings, SteeringError, FREE, fingerprint=fingerprint)
  return Saved(out, log, SteeringError)


def describe_choice(settings: Settings, chosen: Chosen) -> str:
  """The choice as one line."""
  one = summarise(settings, chosen)
  return (
    f'position {one["position"]}, layer {one["layer"]} of {one["layers"]}; bypass {one["bypass"]:.2f} (plain '
    f'{one["positive"]:.2f}), induce {one["induce"]:.2f} (plain {one["negative"]:.2f}), kl {one["kl"]:.3f}'
  )


def summarise(settings: Settings, chosen: Chosen) -> dict[str, Any]:
  """The choice as plain values."""
  one, scores = chosen.direction, chosen.scores
  i, layer = one.index
  return {
    'position': settings.positions[i],
    'layer': layer,
    'layers': scores.values.shape[1],
    'depth': scores.depth,
    'bypass': one.bypass,
    'induce': one.induce,
    'kl': one.kl,
    'positive': scores.positive,
    'negative': scores.negative,
    'length': float(np.linalg.norm(one.direction)),
    'loudness': float(chosen.loudness[i, layer]),
    'candidates': int(np.prod(scores.values.shape[:2])),
    'passing': int((~np.any([*scores.find_failures(settings.kl, settings.induce).values()], 0)).sum()),
    'discarded': one.discarded,
  }  # fmt: skip


def judge(study: Study, one: dict[str, Any]) -> dict[str, Any]:
  """Counts and Wilson intervals of the three classes, and some completions; or the reason for their absence."""
  if 'missing' in one:
    return one
  found: Judgements = study.judge.count(one['texts'])
  shares = {
    name: [share.count, share.total, *share.interval()] for name, share in found.shares.items()
  }
  return {'shares': shares, 'examples': one['texts'][:_EXAMPLES], 'classes': [*found.classes]}


def compare_twin(completions: dict[str, dict[str, Any]]) -> list[int] | None:
  """Completions of the weight twin that have the tokens of those with the direction removed, and all of them."""
  removed, twin = (completions[f'positive {name}'] for name in (REMOVED, TWIN))
  if 'missing' in twin:
    return None
  same = [a == b for a, b in zip(removed['tokens'], twin['tokens'], strict=True)]
  return [sum(same), len(same)]


def _describe_study(study: Study) -> dict[str, Any]:
  return {
    'title': study.title,
    'sets': [*study.sets],
    'classes': dict(zip(CLASSES, study.classes)),
    'note': study.note,
  }
