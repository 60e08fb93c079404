"""Report on scores: means with standard errors, next to the controls that give them a meaning.

    report = Report(scores)
    print(report)                  one line for each scorer, method and control; paired differences; conclusions
    report.rows, report.differences, report.conclusions
    Report(scores, 'auroc_hard')   the same of a further figure

A mean of 0.3 can be good or nothing. So each explanation is compared with another latent's explanation ('shuffled') and
with the token table, latent by latent: the difference has a much smaller standard error than either mean, since some
latents are easier than others. Where the table predicts better than the model, the report says so.

Undefined scores (NaN) and replies that failed are counted and enter no mean. Standard errors are over latents, with
n - 1, and NaN for one latent; they do not cover the choice of the excerpts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from mechjax.autointerp.record import Control, Score
from mechjax.autointerp.scoring.sources import TABLE
from mechjax.errors import InterpretationError, unknown


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """Scores of one scorer, method and control over latents.

  Attributes:
    scorer: name of the scorer.
    method: name of the explainer.
    control: see `Control`.
    mean: mean over latents with a defined score; NaN without any.
    standard_error: of the mean; NaN for fewer than two latents.
    median: median over the same latents.
    n: number of latents with a defined score.
    n_undefined: number of latents without one.
    n_failed: number of replies that failed, over all latents.
  """

  scorer: str
  method: str
  control: Control
  mean: float
  standard_error: float
  median: float
  n: int
  n_undefined: int
  n_failed: int


@dataclasses.dataclass(frozen=True)
class ScoreDifference:
  """Difference of a latent's own explanation and a control, over latents in which both are defined.

  Attributes:
    scorer: name of the scorer.
    method: name of the explainer.
    control: 'shuffled' or 'table'.
    own: mean score of the own explanations of these latents.
    other: mean score of the control of these latents.
    difference: own - other.
    standard_error: of the difference, over latents; NaN for fewer than two.
    n: number of latents.
  """

  scorer: str
  method: str
  control: Literal['shuffled', 'table']
  own: float
  other: float
  difference: float
  standard_error: float
  n: int

  @property
  def is_clear(self) -> bool:
    """Whether the difference is larger than two standard errors."""
    return abs(self.difference) > 2 * self.standard_error

  def __str__(self) -> str:
    return (
      f'{self.difference:+.3f} ± {self.standard_error:.3f} over {self.n} latents '
      f'({self.own:.3f} against {self.other:.3f})'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """Tables of scores.

  Attributes:
    scores: scores of any scorers, methods and controls.
    metric: 'value', or the name of a further figure of some scores, such as 'balanced_accuracy'.

  Raises:
    InterpretationError: no scores, two scores of one latent by one scorer, method and control, or a metric that no
      score has.
  """

  scores: Sequence[Score]
  metric: str = 'value'

  def __post_init__(self) -> None:
    object.__setattr__(self, 'scores', tuple(self.scores))
    if not self.scores:
      raise InterpretationError('a report without scores')
    known = {'value', *(name for score in self.scores for name in score.more)}
    if self.metric not in known:
      raise unknown(InterpretationError, 'metric', self.metric, sorted(known))
    for (scorer, method, control), scores in self._groups.items():
      latents = [score.latent for score in scores]
      if len(set(latents)) < len(latents):
        raise InterpretationError(
          'two scores of one latent',
          where=f'scorer {scorer!r}, method {method!r}, control {control!r}',
          hint='a report of the scores of one run',
        )

  @functools.cached_property
  def rows(self) -> tuple[ScoreRow, ...]:
    """A row for each scorer, method and control, in the order of the scores."""
    return tuple(self._summarise(key) for key in self._groups)

  @functools.cached_property
  def differences(self) -> tuple[ScoreDifference, ...]:
    """Paired differences of own explanations with each of their controls that was scored."""
    found = []
    for scorer, method, control in self._groups:
      if control == 'own':
        found.append(self._compare(scorer, method, 'shuffled', method))
        found.append(self._compare(scorer, method, 'table', TABLE))
    return tuple(difference for difference in found if difference is not None)

  @functools.cached_property
  def conclusions(self) -> tuple[str, ...]:
    """A sentence for each difference."""
    return tuple(map(_conclude, self.differences))

  def __str__(self) -> str:
    lines = [
      f'{self.metric}, mean and standard error over latents',
      f'{"scorer":16}{"method":16}{"control":16}{"mean":>9}{"s.e.":>8}{"median":>9}{"n":>6}{"undef.":>8}{"failed":>8}',
    ]
    for r in self.rows:
      lines.append(
        f'{r.scorer:16}{r.method:16}{r.control:16}{r.mean:9.3f}{r.standard_error:8.3f}{r.median:9.3f}'
        f'{r.n:6}{r.n_undefined:8}{r.n_failed:8}'
      )
    return '\n'.join([*lines, *self.conclusions])

  @functools.cached_property
  def _groups(self) -> dict[tuple[str, str, Control], list[Score]]:
    """Scores by scorer, method and control."""
    groups = collections.defaultdict(list)
    for score in self.scores:
      groups[score.scorer, score.method, score.control].append(score)
    return dict(groups)

  def _number(self, score: Score) -> float:
    return score.value if self.metric == 'value' else score.more.get(self.metric, math.nan)

  def _summarise(self, key: tuple[str, str, Control]) -> ScoreRow:
    scores = self._groups[key]
    values = np.array([self._number(score) for score in scores], np.float64)
    x = values[~np.isnan(values)]
    n_failed = sum(score.n_failed for score in scores)
    median = float(np.median(x)) if len(x) else math.nan
    return ScoreRow(*key, *_mean(x), median, len(x), len(values) - len(x), n_failed)

  def _compare(
    self, scorer: str, method: str, control: Literal['shuffled', 'table'], other_method: str
  ) -> ScoreDifference | None:
    """Paired difference; None if the control was not scored, or no latent has both."""
    others = self._groups.get((scorer, other_method, control), [])
    of_other = {score.latent: self._number(score) for score in others}
    pairs = [
      (self._number(score), of_other.get(score.latent, math.nan))
      for score in self._groups[scorer, method, 'own']
    ]
    x = np.array(pairs, np.float64).reshape(-1, 2)
    x = x[~np.isnan(x).any(-1)]
    if not len(x):
      return None
    own, other = x.mean(0).tolist()
    difference, error = _mean(x[:, 0] - x[:, 1])
    return ScoreDifference(scorer, method, control, own, other, difference, error, len(x))


def _mean(x: Float64[np.ndarray, ' n']) -> tuple[float, float]:
  """Mean and its standard error."""
  mean = float(x.mean()) if len(x) else math.nan
  return mean, float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan


def _conclude(d: ScoreDifference) -> str:
  """A sentence about a difference."""
  own = f'the explanations by {d.method!r}'
  other = 'the token table' if d.control == 'table' else 'explanations of other latents'
  if not d.is_clear:
    return f'{d.scorer}: {own} do not differ clearly from {other}: {d}'
  if d.difference > 0:
    return f'{d.scorer}: {own} predict better than {other}: {d}'
  verb = 'predicts' if d.control == 'table' else 'predict'
  return f'{d.scorer}: {other} {verb} better than {own}: {d}'
