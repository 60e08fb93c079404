"""Plan of a score: the requests that it needs, and the evaluation of their replies.

    plan = Detection().plan(examples, 'words of contrast', rng)
    values = plan.evaluate(ask(plan.requests))

A scorer does not ask. It writes down its requests, so that `score` sends those of all latents, scorers and controls in
one call, in which a provider works on many at a time and computes a common prefix once.

A reply that failed, or that has no mass on the answers, is neither right nor wrong: it enters nothing and is counted. A
reply that does not have the form of its request is an error of the provider, and raises one.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float, Float64, Int

from mechjax.autointerp.record import Excerpt, LatentExamples
from mechjax.autointerp.scoring.statistics import Statistic
from mechjax.errors import InterpretationError
from mechjax.providers.checks import check_answer
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  LossRequest,
  Message,
  Reply,
  Request,
  TableRequest,
)


class ActivationTable(Protocol):
  """Predicts activations without a model, as `TokenTable` does."""

  def predict(self, tokens: Int[np.ndarray, ' W']) -> Float[np.ndarray, ' W']:
    """Predicted activation of each token, in the units of the activations."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreValues:
  """Values of a `Score`, whose attributes these are, without the names of whose score it is."""

  value: float
  n: int
  n_failed: int = 0
  reason: str = ''
  more: dict[str, float] = dataclasses.field(default_factory=dict)
  predicted: tuple[Float[np.ndarray, ' W'], ...] = ()
  excerpts: tuple[Excerpt, ...] = ()
  probability: tuple[float, ...] = ()

  @classmethod
  def of(cls, statistic: Statistic, n: int, more: dict[str, float], **others: Any) -> ScoreValues:
    """Values of a statistic and its reason; `more` without undefined figures; `others` are attributes."""
    defined = {name: value for name, value in more.items() if not math.isnan(value)}
    return cls(statistic.value, n, reason=statistic.reason, more=defined, **others)


@dataclasses.dataclass(frozen=True, eq=False)
class ScorePlan:
  """Requests of one score, and the evaluation of their replies.

  Attributes:
    requests: the requests; for `Embedding` texts.
    evaluate: from one reply for each request, in their order, to the values of the score.
  """

  requests: tuple[Any, ...]
  evaluate: Callable[[Sequence[Any]], ScoreValues]


@dataclasses.dataclass(frozen=True)
class Scorer(abc.ABC):
  """Base of all scorers.

  Attributes:
    name: name of the scorer in scores, tags of requests and reports; '' for the name of its kind.
  """

  name: str = dataclasses.field(default='', kw_only=True)

  kind: ClassVar[str]
  """Name of the kind of scorer."""
  needs_explanation: ClassVar[bool] = True

  def __post_init__(self) -> None:
    if not isinstance(self.name, str):
      raise InterpretationError(f'name={self.name!r}; expected a text')
    object.__setattr__(self, 'name', self.name or self.kind)

  @abc.abstractmethod
  def plan(self, examples: LatentExamples, explanation: str, rng: np.random.Generator) -> ScorePlan:
    """Plans a score.

    Args:
      examples: examples of the latent.
      explanation: the explanation to be scored, which may be that of another latent; '' if none is needed.
      rng: source of random numbers, which depends on the seed, the latent and the scorer alone, so that each
        explanation of a latent meets the same excerpts.
    """


@dataclasses.dataclass(frozen=True)
class TableScorer(Scorer):
  """Base of scorers that score a token table as well, in place of a model."""

  @abc.abstractmethod
  def score_table(
    self,
    examples: LatentExamples,
    table: ActivationTable,
    scale: float,
    rng: np.random.Generator,
  ) -> ScoreValues:
    """Scores a token table on the same excerpts as an explanation.

    Args:
      examples: examples of the latent.
      table: the table, which may be that of another latent.
      scale: largest activation of the latent whose table it is.
      rng: as in `plan`.
    """


def check_count(name: str, value: int, least: int = 0) -> None:
  """Raises InterpretationError unless a setting is a whole number of at least `least`."""
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise InterpretationError(f'{name}={value!r}; expected a whole number of at least {least}')


def make_rng(seed: int, latent: int, scorer: str) -> np.random.Generator:
  """Source of random numbers of one latent and one scorer."""
  return np.random.default_rng([seed, latent, zlib.crc32(scorer.encode())])


def draw(excerpts: Sequence[Excerpt], n: int, rng: np.random.Generator) -> tuple[Excerpt, ...]:
  """Up to n excerpts at random, without replacement, in their order."""
  kept = sorted(rng.permutation(len(excerpts))[:n])
  return tuple(excerpts[i] for i in kept)


def read_probabilities(
  request: ChoiceRequest | TableRequest, reply: Reply
) -> Float64[np.ndarray, 'places answers'] | None:
  """Probabilities of the answers to a request; None for a reply that failed.

  A reply fails if its provider states so, or if the answers have no mass at any of its places.

  Raises:
    InterpretationError: something that is not a reply.
    ProviderError: an answer that does not fit its request (`check_answer`).
  """
  if isinstance(reply, Failed):
    return None
  found = _check(request, reply).probabilities
  assert found is not None
  return found if np.all(found.sum(-1) > 0) else None


def read_loss(request: LossRequest, reply: Reply) -> float | None:
  """Loss of a text; None for a reply that failed. Errors as for `read_probabilities`."""
  return None if isinstance(reply, Failed) else _check(request, reply).loss


def _check(request: Request, reply: Reply) -> Answer:
  """Returns an answer that fits its request."""
  where = f'request {json.dumps(request.tag)}'
  if not isinstance(reply, Answer):
    raise InterpretationError(f'{reply!r:.100} is not a reply', where=where)
  check_answer(request, reply, where)
  return reply


def mean_of(values: Sequence[float]) -> float:
  """Mean; NaN of nothing."""
  return float(np.mean(values)) if len(values) else math.nan


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Fixed beginning of all prompts of a scorer, which a provider computes once.

  Attributes:
    system: the task.
    turns: pairs of a question and its answer.
  """

  system: str
  turns: tuple[tuple[str, str], ...]

  def ask(self, question: str) -> tuple[Message, ...]:
    """Messages of a question after the fixed beginning."""
    return (*self._beginning, Message('user', question))

  @functools.cached_property
  def _beginning(self) -> tuple[Message, ...]:
    messages = [Message('system', self.system)]
    for user, assistant in self.turns:
      messages += [Message('user', user), Message('assistant', assistant)]
    return tuple(messages)
