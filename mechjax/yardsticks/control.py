"""Control: whether an edited activation makes the model answer as the activation of the changed prompt does.

The true effect of a change is known: the activation of the prompt in which the attribute really is another one, patched
into the run. An edit is right where the model then gives the same answer (Makelov et al. 2024, arXiv 2405.08366,
section 4.2). For a model with several questions about one thing, such as the country and the language of a city, an
edit should change one answer and leave the others (RAVEL, Huang et al. 2024, arXiv 2402.17700):

    score_edits(answers, patched=answers_of_true_patches, expected=names)       shares with Wilson's intervals
    disentangle(edited='country', asked=questions, answers=answers, old=before, new=after)

    cause        share of questions about the edited attribute whose answer is the new value
    isolation    share of questions about another attribute whose answer is still the old one
    disentanglement    mean of the two; isolation is first averaged over the other attributes

Sharp edge: questions of which old and new answer are equal show nothing of a cause, and are not counted there.

Letters: B prompts.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Shaped

from mechjax.errors import YardstickError
from mechjax.steering.intervals import Proportion
from mechjax.yardsticks.checks import Values, as_values, check_same_kind


@dataclasses.dataclass(frozen=True)
class EditScores:
  """Answers after edits.

  Attributes:
    as_patched: share that equals the answer after the true patch.
    as_expected: share that equals the expected answer.
    ceiling: share of the answers after the true patch that equals the expected answer.
  """

  as_patched: Proportion
  as_expected: Proportion
  ceiling: Proportion


@dataclasses.dataclass(frozen=True)
class Disentanglement:
  """Effect of edits of one attribute on answers about all of them.

  Attributes:
    cause: share of changed answers about the edited attribute.
    isolation: share of unchanged answers about each other attribute.
  """

  cause: Proportion
  isolation: dict[str, Proportion]

  @property
  def mean_isolation(self) -> float:
    """Mean over the other attributes."""
    return float(np.mean([p.share for p in self.isolation.values()]))

  @property
  def score(self) -> float:
    """Mean of cause and isolation."""
    return (self.cause.share + self.mean_isolation) / 2

  @property
  def isolation_error(self) -> float:
    """Standard error of the mean isolation, of independent questions."""
    return math.sqrt(sum(map(_variance, self.isolation.values()))) / len(self.isolation)

  @property
  def standard_error(self) -> float:
    """Standard error of the score, of independent questions."""
    return math.hypot(math.sqrt(_variance(self.cause)), self.isolation_error) / 2


def score_edits(answers: Values, *, patched: Values, expected: Values) -> EditScores:
  """Scores answers after edits.

  Args:
    answers: answer of the model after each edit, such as a token id.
    patched: its answer after the true patch.
    expected: the right answer to the changed prompt.

  Raises:
    YardstickError: different numbers of answers, or answers of another kind.
  """
  said = as_values('answers', answers)
  truth = _as_same_kind('patched', patched, said)
  right = _as_same_kind('expected', expected, said)
  return EditScores(_share(said == truth), _share(said == right), _share(truth == right))


def disentangle(
  *, edited: str, asked: Values, answers: Values, old: Values, new: Values
) -> Disentanglement:
  """Scores edits of one attribute by questions about it and about others.

  Args:
    edited: the attribute that all edits change.
    asked: attribute of each question.
    answers: answer of the model to each question after the edit.
    old, new: its right answers before and after the edit; the old one counts for other attributes.

  Raises:
    YardstickError: different numbers of questions; no question about the edited attribute whose answer changes, or none
      about another attribute.
  """
  questions = as_values('asked', asked)
  said = as_values('answers', answers, len(questions))
  before, after = (_as_same_kind(n, v, said) for n, v in (('old', old), ('new', new)))
  about = questions == edited
  changed = about & (before != after)
  if not changed.any() or about.all():
    raise YardstickError(
      f'{int(changed.sum())} questions about {edited!r} whose answer changes, and {int((~about).sum())} about others',
      cause='an attribute of another name, or pairs with equal values',
    )
  others = np.unique(questions[~about]).tolist()
  kept = {name: _share((said == before)[questions == name]) for name in others}
  return Disentanglement(_share((said == after)[changed]), kept)


def _as_same_kind(
  name: str, values: Values, like: Shaped[np.ndarray, ' B']
) -> Shaped[np.ndarray, ' B']:
  found = as_values(name, values, len(like))
  check_same_kind(name, found, like)
  return found


def _variance(of: Proportion) -> float:
  """Variance of a share of independent events."""
  return of.share * (1 - of.share) / of.total


def _share(hits: Shaped[np.ndarray, ' some']) -> Proportion:
  return Proportion(int(hits.sum()), len(hits))
