"""Classification of texts by a model that answers yes or no, one text a request; `Detection` and `Fuzzing` use it.

    p = P(yes) / (P(yes) + P(no))

One text a request, because texts in one prompt tell on each other: a model that has seen four active texts expects the
fifth to be inactive. The probability is read and not sampled, so that an AUROC needs no threshold, and a model that
says yes to everything has 0.5 and not the share of positives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mechjax.autointerp.scoring.plans import FewShot, mean_of, read_probabilities
from mechjax.errors import InterpretationError
from mechjax.providers.requests import ChoiceRequest, Reply

YES_NO = ('Yes', 'No')
"""The default answers. Asked whether a word occurs in a text that has it or has not, Qwen2.5-Coder-0.5B reaches a mean
AUROC of 0.68 with these, 0.66 in lower case, 0.64 with true and false, and 0.41 with 1 and 0 (ten words, 2 to 12 texts
each)."""


@dataclasses.dataclass(frozen=True)
class YesNoReplies:
  """Replies to questions that are answered by yes or no.

  Attributes:
    probability: P(yes) / (P(yes) + P(no)) of each question; NaN if its reply failed.
    mass: mean of P(yes) + P(no) over replies that did not fail.
  """

  probability: tuple[float, ...]
  mass: float

  @property
  def n_failed(self) -> int:
    """Number of replies that failed."""
    return sum(map(math.isnan, self.probability))

  def of(self, low: int, high: int) -> list[float]:
    """Probabilities of the questions low .. high - 1 without those that failed."""
    return [p for p in self.probability[low:high] if not math.isnan(p)]


def make_choices(
  few_shot: FewShot, questions: Sequence[str], answers: tuple[str, str]
) -> tuple[ChoiceRequest, ...]:
  """A request for each question."""
  return tuple(ChoiceRequest(few_shot.ask(question), answers) for question in questions)


def read_yes_or_no(requests: Sequence[ChoiceRequest], replies: Sequence[Reply]) -> YesNoReplies:
  """Reads replies to requests whose first answer means yes.

  Raises:
    InterpretationError: a reply that is not one to its request.
  """
  found = [read_probabilities(*pair) for pair in zip(requests, replies, strict=True)]
  masses = [float(p.sum()) for p in found if p is not None]
  probability = [math.nan if p is None else float(p[0, 0] / np.sum(p)) for p in found]
  return YesNoReplies(tuple(probability), mean_of(masses))


def check_answers(answers: tuple[str, str]) -> None:
  """Raises InterpretationError unless answers are two texts for yes and no."""
  texts = isinstance(answers, tuple) and all(isinstance(a, str) and a for a in answers)
  if (
    not texts
    or len(answers) != 2
    or answers[0].startswith(answers[1])
    or answers[1].startswith(answers[0])
  ):
    raise InterpretationError(
      f'answers={answers!r}; expected two texts for yes and no, none of which begins with the other'
    )
