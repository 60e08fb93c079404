"""Selection of one direction among the candidates of all layers and positions.

Many candidates change the behaviour and damage the model as well, so the choice is made by three measurements
(`scoring`): of the candidates whose removal leaves harmless text alone (`kl` at most a limit), whose addition brings
the behaviour about (`induce` at least a limit) and that lie in the lower part of the model (`depth`), take the one
whose removal suppresses the behaviour most, that is the least `bypass` (Arditi et al. 2024, appendix C).

    select = DirectionSelection(model.apply, log_odds(ids), forward_from=model.forward_from)
    choice = select(model.params, directions, positive, negative)
    choice.index, choice.direction, choice.discarded      choice.layer is choice.index[1]

The limits are settings, because they do not carry over: a model can have a clear direction and no candidate that
passes all three. That is an error, and not a silent second best; it states how many candidates failed each limit and
the nearest ones. Scores take minutes and limits nothing, so both steps are available:

    scores = select.score(model.params, directions, positive, negative)
    scores.choose(kl=0.1, induce=-0.5)

Sharp edges: a candidate may fail several limits and is counted at each. Candidates at or above layer int(depth * L) are
not scored and have NaN. A selection uses its prompts up: test the direction on others.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, PyTree

from mechjax.errors import SteeringError
from mechjax.steering.prompts import PromptSet
from mechjax.steering.scoring import Candidate, Scoring

SCORES = ('bypass', 'induce', 'kl')
"""The three scores of a candidate, in order."""


@dataclasses.dataclass(frozen=True)
class SelectedDirection:
  """The direction that a selection chose.

  Attributes:
    index: position and layer of the candidate, indices of the array of candidates.
    direction: the candidate, at the length of the difference of means, float64 [D].
    scores: bypass, induce and kl of every candidate, float64 [positions, L, 3]; NaN where it was not scored.
    discarded: number of candidates that failed each limit; one may fail several.
  """

  index: tuple[int, int]
  direction: Float64[np.ndarray, ' D']
  scores: Float64[np.ndarray, 'positions L 3']
  discarded: dict[str, int]

  @property
  def layer(self) -> int:
    """The layer before which the direction was found, and is added."""
    return self.index[1]

  @property
  def bypass(self) -> float:
    """Mean metric of the positive prompts with the direction removed."""
    return float(self.scores[self.index][0])

  @property
  def induce(self) -> float:
    """Mean metric of the negative prompts with the direction added."""
    return float(self.scores[self.index][1])

  @property
  def kl(self) -> float:
    """Mean KL(plain || direction removed) after the negative prompts, in nats."""
    return float(self.scores[self.index][2])


@dataclasses.dataclass(frozen=True)
class DirectionScores:
  """Scores of all candidates.

  Attributes:
    values: bypass, induce and kl, float64 [positions, L, 3]; NaN where a candidate was not scored.
    candidates: the candidates, float64 [positions, L, D].
    depth: layers from this one on were not scored.
    positive: mean metric of the plain model on the positive prompts, to compare `bypass` with.
    negative: the same on the negative prompts, to compare `induce` with.
  """

  values: Float64[np.ndarray, 'positions L 3']
  candidates: Float64[np.ndarray, 'positions L D']
  depth: int
  positive: float
  negative: float

  def choose(self, kl: float = 0.1, induce: float = 0.0) -> SelectedDirection:
    """Chooses the candidate with the least bypass among those within the limits.

    Args:
      kl: largest `kl`, in nats.
      induce: least `induce`.

    Raises:
      SteeringError: no candidate is within the limits; the message states how many fail each of them, and the nearest
        candidates.
    """
    check_limits(kl, induce)
    failed = self.find_failures(kl, induce)
    passing = ~np.any(list(failed.values()), axis=0)
    discarded = {name: int(mask.sum()) for name, mask in failed.items()}
    if not passing.any():
      raise self._none_left(failed, discarded, kl, induce)
    bypass = np.where(passing, self.values[..., 0], np.inf)
    i, layer = np.unravel_index(bypass.argmin(), bypass.shape)
    index = int(i), int(layer)
    return SelectedDirection(index, self.candidates[index], self.values, discarded)

  def find_failures(self, kl: float, induce: float) -> dict[str, Bool[np.ndarray, 'positions L']]:
    """Marks the candidates that fail each limit: 'depth', 'zero' (no length), 'NaN', 'kl' and 'induce'."""
    deep = np.zeros(self.values.shape[:2], bool)
    deep[:, self.depth :] = True
    zero = ~deep & ~self.candidates.any(-1)
    unknown = ~deep & ~zero & np.isnan(self.values).any(-1)
    scored = ~(deep | zero | unknown)
    return {
      'depth': deep,
      'zero': zero,
      'NaN': unknown,
      'kl': scored & ~(self.values[..., 2] <= kl),
      'induce': scored & ~(self.values[..., 1] >= induce),
    }

  def _none_left(
    self,
    failed: dict[str, Bool[np.ndarray, 'positions L']],
    discarded: dict[str, int],
    kl: float,
    induce: float,
  ) -> SteeringError:
    nearest = [*self._describe_nearest(failed, kl, induce)]
    counts = ', '.join(f'{name} {n}' for name, n in discarded.items() if n)
    return SteeringError(
      f'none of {failed["kl"].size} candidates is left by kl <= {kl:g} and induce >= {induce:g}',
      where=f'candidates that fail each limit (some fail several): {counts}',
      cause='nearest: ' + '; '.join(nearest) if nearest else 'no candidate was scored',
      hint='scores = select.score(...) keeps the scores; scores.choose(kl=..., induce=...) tries other limits',
    )

  def _describe_nearest(
    self, failed: dict[str, Bool[np.ndarray, 'positions L']], kl: float, induce: float
  ) -> Iterator[str]:
    """The candidates that fail one limit alone, by the least; or the one with the least kl, if all fail both."""
    misses = {'kl': self.values[..., 2] - kl, 'induce': induce - self.values[..., 1]}
    several = np.sum(list(failed.values()), axis=0) > 1
    alone = {name: np.where(failed[name] & ~several, x, np.inf) for name, x in misses.items()}
    if not any(np.isfinite(x).any() for x in alone.values()):
      alone = {'kl and induce': np.where(failed['kl'], misses['kl'], np.inf)}
    for name, miss in alone.items():
      if np.isfinite(miss).any():
        index = np.unravel_index(miss.argmin(), miss.shape)
        scores = ', '.join(f'{n} {x:.3g}' for n, x in zip(SCORES, self.values[index]))
        yield (
          f'[{index[0]}, {index[1]}] fails {name} alone ({scores})'
          if ' ' not in name
          else (f'[{index[0]}, {index[1]}] fails {name} ({scores})')
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DirectionSelection(Scoring):
  """Selection of a direction; see the module.

  Attributes:
    forward, behaviour, forward_from, writes, site, batch: as in `Scoring`.
    kl: largest KL(plain || ablated) of the next token after negative prompts, in nats.
    induce: least metric of negative prompts with the direction added.
    depth: candidates before layers from int(depth * L) on are left out: a late direction acts on the tokens of the
      answer, and not on the behaviour.

  Raises:
    SteeringError: as `Scoring`; a limit that is not a number, a kl or a depth outside its range.
  """

  kl: float = 0.1
  induce: float = 0.0
  depth: float = 0.8

  def __post_init__(self) -> None:
    super().__post_init__()
    check_limits(self.kl, self.induce)
    if not isinstance(self.depth, int | float) or not 0 < self.depth <= 1:
      raise SteeringError(f'depth={self.depth!r} should be over 0 and at most 1: a share of layers')

  def __call__(
    self,
    params: PyTree,
    candidates: Float64[np.ndarray, 'positions L D'],
    positive: PromptSet,
    negative: PromptSet,
  ) -> SelectedDirection:
    """Scores the candidates and chooses one; see `score` and `DirectionScores.choose`."""
    return self.score(params, candidates, positive, negative).choose(self.kl, self.induce)

  def score(
    self,
    params: PyTree,
    candidates: Float64[np.ndarray, 'positions L D'],
    positive: PromptSet,
    negative: PromptSet,
  ) -> DirectionScores:
    """Scores the candidates.

    Args:
      params: parameters of the model.
      candidates: float64 [positions, L, D], of `find_candidates`.
      positive: prompts that show the behaviour, other ones than those of the candidates.
      negative: prompts that do not.

    Raises:
      SteeringError: candidates of another model, or with NaN; logits of the plain model that are not finite.
    """
    positive, negative = PromptSet.of(positive), PromptSet.of(negative)
    candidates = np.asarray(candidates, np.float64)
    self.check_candidates(params, candidates, positive)
    if not np.isfinite(candidates).all():
      raise SteeringError('the candidates contain NaN or infinity')
    stop = int(self.depth * candidates.shape[1])
    index = [
      (i, l) for i, l in np.ndindex(candidates.shape[:2]) if l < stop and candidates[i, l].any()
    ]
    chosen: list[Candidate] = [(l, candidates[i, l]) for i, l in index]
    base = [float(self.measure(params, prompts).mean()) for prompts in (positive, negative)]
    values = np.full((*candidates.shape[:2], len(SCORES)), np.nan)
    if chosen:
      at = tuple(np.array(index).T)
      values[(*at, 0)] = self.score_positive(params, chosen, positive)
      values[(*at, slice(1, None))] = self.score_negative(params, chosen, negative)
    return DirectionScores(values, candidates, stop, *base)


def check_limits(kl: float, induce: float) -> None:
  """Raises SteeringError unless the limits are numbers that a candidate can keep."""
  for name, value in (('kl', kl), ('induce', induce)):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
      raise SteeringError(f'{name}={value!r} should be a number')
  if kl <= 0:
    raise SteeringError(f'kl={kl!r} should be over 0: every removal changes the output a little')
