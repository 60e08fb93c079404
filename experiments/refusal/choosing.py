"""The choice of a direction: the metric on all prompts, the candidates, their scores and the choice.

Each step is saved. Scores take nearly all of the time and the limits of the choice nothing, so that a choice that fails
leaves the scores in the output directory, and the same command with other limits reads them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.refusal.settings import FOUND, Settings
from experiments.refusal.subject import SETS, Subject
from experiments.saved import Saved
from mechjax.errors import SteeringError
from mechjax.steering import (
  DirectionScores,
  DirectionSelection,
  PromptSet,
  SelectedDirection,
  find_candidates,
  keep_sign,
  log_odds,
  make_reader,
  measure_loudness,
  measure_stream,
)

KINDS = ('positive', 'negative')
FEW = 8
"""Fewer prompts of a set than this give a warning."""
LEAST_PROBABILITY, LEAST_RATIO = 0.002, 5.0
"""Limits of first tokens that are found: mean probability after positive prompts, and its ratio to the other one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
  """The direction, and what led to it.

  Attributes:
    first_tokens: ids of the first tokens of the behaviour.
    metric: metric of the plain model on each prompt, by set and kind, 'train positive' and so on.
    loudness: rho / sqrt(D) of the negative prompts, [positions, L].
    scores: scores of all candidates.
    direction: the choice.
  """

  first_tokens: list[int]
  metric: dict[str, np.ndarray]
  loudness: np.ndarray
  scores: DirectionScores
  direction: SelectedDirection

  @property
  def key(self) -> list[int]:
    """Indices of the position and of the layer, the key of all steps after the choice."""
    return [*self.direction.index]

  def count_signs(self) -> dict[str, list[int]]:
    """Prompts of each set with the right sign of the metric, and all of them."""
    return {name: [int(find_sign(name, x).sum()), len(x)] for name, x in self.metric.items()}


def choose(settings: Settings, subject: Subject, saved: Saved) -> Chosen:
  """Finds candidates, scores them, and chooses one.

  Raises:
    SteeringError: no prompt has the right sign, or no candidate is within the limits.
  """
  ids = find_first_tokens(settings, subject, saved)
  selection = DirectionSelection(
    subject.model.apply,
    log_odds(ids),
    forward_from=subject.model.forward_from,
    batch=settings.batch,
    depth=settings.depth,
  )
  metric = measure_metric(subject, selection, saved)
  kept = {
    name: {
      kind: keep_sign(
        subject.prompts[name][kind], metric[f'{name} {kind}'], kind == 'positive'
      ).prompts
      for kind in KINDS
    }
    for name in SETS[:2]
  }
  for warning in warn_of_few(kept, metric):
    print(warning, flush=True)
  found = saved.arrays(
    'candidates', None, lambda: make_candidates(settings, subject, kept['train'])
  )
  scores = score(subject, selection, found['candidates'], kept['validation'], saved)
  direction = scores.choose(settings.kl, settings.induce)
  return Chosen(ids, metric, found['loudness'], scores, direction)


def warn_of_few(kept: dict[str, dict[str, PromptSet]], metric: dict[str, np.ndarray]) -> list[str]:
  """Warnings of sets that have fewer than `FEW` prompts with the right sign."""
  return [
    f'warning: {len(prompts.tokens)} of {len(metric[f"{name} {kind}"])} {kind} prompts for {name} have the right sign '
    'of the metric, and the choice rests on them'
    for name, kinds in kept.items()
    for kind, prompts in kinds.items()
    if len(prompts.tokens) < FEW
  ]


def find_first_tokens(settings: Settings, subject: Subject, saved: Saved) -> list[int]:
  """Ids of the first tokens of the behaviour, given or found from the training prompts."""
  given = settings.first_tokens or subject.study.first_tokens
  if given and FOUND not in given:
    return sorted({subject.model.token(text) for text in given})
  return saved.json('first_tokens', None, lambda: _find_first_tokens(settings, subject))


def _find_first_tokens(settings: Settings, subject: Subject) -> list[int]:
  """Tokens that are likely after positive training prompts, and several times as likely as after negative ones."""
  sets = subject.prompts['train']
  positive, negative = (mean_probabilities(subject, sets[kind], settings.batch) for kind in KINDS)
  listed = (positive > LEAST_PROBABILITY) & (positive > LEAST_RATIO * negative)
  if not listed.any():
    raise SteeringError(
      f'no first token is {LEAST_RATIO:g} times as likely after {subject.study.sets[0]} prompts as after '
      f'{subject.study.sets[1]} ones',
      hint='--first_tokens names them',
    )
  return np.flatnonzero(listed).tolist()


def mean_probabilities(subject: Subject, prompts: PromptSet, batch: int) -> np.ndarray:
  """Mean probability of each token after the prompts, float64 [V]."""
  total = np.zeros(subject.model.n_vocab)
  for index, n in prompts.blocks(batch):
    block = prompts.take(index)
    rows, at = np.arange(len(block)), block.columns((-1,))[:, 0]
    logits = subject.model(jnp.asarray(block.tokens), block.mask)[rows, at]
    total += np.asarray(jax.nn.softmax(logits), np.float64)[:n].sum(0)
  return total / len(prompts)


def measure_metric(
  subject: Subject, selection: DirectionSelection, saved: Saved
) -> dict[str, np.ndarray]:
  """The metric of the plain model on every prompt, by set and kind."""

  def compute() -> dict[str, np.ndarray]:
    return {
      f'{name} {kind}': selection.measure(subject.model.params, subject.prompts[name][kind])
      for name in SETS
      for kind in KINDS
    }

  return saved.arrays('metric', None, compute)


def find_sign(name: str, values: np.ndarray) -> np.ndarray:
  """Whether each value has the sign of its kind, which is the last word of the name."""
  return values > 0 if name.endswith(KINDS[0]) else values < 0


def make_candidates(
  settings: Settings, subject: Subject, kept: dict[str, PromptSet]
) -> dict[str, Any]:
  """Differences of means, and the loudness of the negative prompts."""
  read = make_reader(subject.model.apply, subject.model.params)
  positive, negative = (kept[kind] for kind in KINDS)
  positions, batch = settings.positions, settings.batch
  directions = find_candidates(read, positive, negative, positions, batch=batch)
  moments = measure_stream(read, negative, positions, batch)
  return {'candidates': directions, 'loudness': measure_loudness(moments)}


def score(
  subject: Subject,
  selection: DirectionSelection,
  candidates: np.ndarray,
  kept: dict[str, PromptSet],
  saved: Saved,
) -> DirectionScores:
  """Scores of the candidates on the validation prompts."""

  def compute() -> dict[str, Any]:
    scores = selection.score(subject.model.params, candidates, *(kept[k] for k in KINDS))
    return {k: getattr(scores, k) for k in ('values', 'depth', 'positive', 'negative')}

  found = saved.arrays('scores', None, compute)
  return DirectionScores(
    found['values'], candidates, *(found[k].item() for k in ('depth', 'positive', 'negative'))
  )
