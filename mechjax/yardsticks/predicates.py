"""F1 of latents as detectors of attributes, and which latents can be read.

A latent is INTERPRETABLE if "it is active" says the same as a predicate "a = x" of the prompt, to an F1 of at least a
threshold, 0.8 by default (Makelov et al. 2024, arXiv 2405.08366, section 4.3):

    predicates = list_predicates({'io': names, 'pos': bits}, coupled=[('io', 'pos')])
    scores = score_f1(latents > 0, predicates)         precision, recall and F1, [predicates, M] each
    scores.best                                        the best F1 of each latent
    scores.is_interpretable(0.8)                       mask [M]
    scores.of_prompts(predicates)                      [B, M]: best F1 among the predicates true of each prompt

    precision = active and true / active,  recall = active and true / true,  F1 = 2 active and true / (active + true)

`unions` finds the best union of values for each latent, such as the names of one gender.

Sharp edges: a predicate that is true of nearly all prompts has a large F1 with a latent that is always active. So the
F1 of such a latent is given for each predicate (`always`), and a latent should be above it. F1 of a latent that is
never active is 0. The largest of many F1 is large by chance; score latents on other prompts than those that chose them.

Letters: B prompts, M latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Bool, Float64

from mechjax.errors import YardstickError, unknown
from mechjax.yardsticks.checks import (
  Attributes,
  as_attributes,
  as_mask,
  check_rows,
  check_same_kind,
  check_share,
)
from mechjax.yardsticks.coding import Coding, Level

Active = Bool[np.ndarray | Array, 'B M']
"""Whether each latent is active at each prompt."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predicates:
  """Statements about prompts, each true of some of them.

  Attributes:
    features: names of the attributes of each statement.
    values: their values in the statement; the name of the union for a union.
    members: values of the attributes for which each statement is true.
    true: whether it is true of each prompt.
  """

  features: tuple[tuple[str, ...], ...]
  values: tuple[Level, ...]
  members: tuple[frozenset[Level], ...]
  true: Bool[np.ndarray, 'predicates B']

  def at(self, attributes: Attributes) -> Predicates:
    """The same statements about other prompts.

    Raises:
      YardstickError: an attribute is missing, or as for `list_predicates`.
    """
    known = as_attributes(attributes)
    if missing := sorted({name for f in self.features for name in f} - {*known}):
      raise YardstickError(f'the attributes {missing} are missing', cause=f'given: {[*known]}')
    for feature, members in zip(self.features, self.members):
      for name, *values in zip(feature, *members):
        check_same_kind(f'the attribute {name!r}', known[name], values)
    true = [_evaluate(f, members, known) for f, members in zip(self.features, self.members)]
    return dataclasses.replace(self, true=np.array(true))

  def check_same(self, other: Predicates) -> None:
    """Raises YardstickError for other statements than these, about any prompts."""
    if (self.features, self.members) != (other.features, other.members):
      raise YardstickError(
        f'scores of {len(self)} predicates and {len(other)} other ones',
        cause='predicates that were listed from other prompts',
        hint='predicates.at(attributes) for the same statements about other prompts',
      )

  def __len__(self) -> int:
    return len(self.features)

  def describe(self, i: int) -> str:
    """One statement in words, such as 'io = Mary'."""
    return ', '.join(f'{a} = {x}' for a, x in zip(self.features[i], self.values[i]))

  def of_feature(self, *names: str) -> Bool[np.ndarray, ' predicates']:
    """Mask of the statements about some attributes together.

    Raises:
      YardstickError: there is no such statement.
    """
    found = np.array([{*feature} == {*names} for feature in self.features], bool)
    if not found.any():
      known = ['+'.join(feature) for feature in dict.fromkeys(self.features)]
      raise unknown(YardstickError, 'feature', '+'.join(names), known)
    return np.asarray(found)


@dataclasses.dataclass(frozen=True, eq=False)
class DetectorScores:
  """Quality of latents as detectors of predicates.

  Attributes:
    predicates: the predicates, with the prompts of the scores.
    precision, recall, f1: of each predicate and latent; 0 for a latent that is never active, and for a predicate that
      is true of no prompt.
    always: F1 of a latent that is always active, of each predicate.
  """

  predicates: Predicates
  precision: Float64[np.ndarray, 'predicates M']
  recall: Float64[np.ndarray, 'predicates M']
  f1: Float64[np.ndarray, 'predicates M']
  always: Float64[np.ndarray, ' predicates']

  @property
  def best(self) -> Float64[np.ndarray, ' M']:
    """Best F1 of each latent."""
    return self.f1.max(0)

  def is_interpretable(self, threshold: float = 0.8) -> Bool[np.ndarray, ' M']:
    """Mask of latents with an F1 of at least the threshold, for a predicate whose `always` is below it.

    Raises:
      YardstickError: a threshold that is not above 0 and at most 1.
    """
    least = check_share('threshold', threshold)
    return np.asarray((self.f1[self.always < least] >= least).any(0))

  def of_prompts(self, predicates: Predicates) -> Float64[np.ndarray, 'B M']:
    """Best F1 of each latent among the predicates that are true of each prompt; 0 without any.

    Args:
      predicates: the same predicates about any prompts, from `Predicates.at`.

    Raises:
      YardstickError: other predicates.
    """
    self.predicates.check_same(predicates)
    found = np.zeros((predicates.true.shape[1], self.f1.shape[1]))
    for true, f1 in zip(predicates.true, self.f1):
      found[true] = np.maximum(found[true], f1)
    return found


def list_predicates(
  attributes: Attributes,
  *,
  coupled: Sequence[Sequence[str]] = (),
  unions: Mapping[str, Mapping[str, Sequence[int | str | bool]]] | None = None,
) -> Predicates:
  """Lists a statement for each value of each attribute.

  Args:
    attributes: values of each attribute at each prompt.
    coupled: attributes that have statements together as well.
    unions: for each attribute, named sets of values that have a statement as well: {'io': {'female': ['Mary', ...]}}.

  Raises:
    YardstickError: as for `Coding.of`; a union of values that do not occur, or of all that do.
  """
  known = as_attributes(attributes)
  coding = Coding.of(known)
  parts = [*zip(coding.features, coding.levels)]
  if coupled:
    together = Coding.of(known, coupled)
    parts += [*zip(together.features, together.levels)][: len(coupled)]
  found = [(feature, level, frozenset([level])) for feature, levels in parts for level in levels]
  for name, sets in (unions or {}).items():
    if name not in known:
      raise unknown(YardstickError, 'attribute', name, known, where='unions')
    present = {*known[name].tolist()}
    for label, members in sets.items():
      if absent := [value for value in members if value not in present]:
        raise YardstickError(
          f'the union {label!r} of {name!r} has values that do not occur: {absent!r:.100}',
          cause='another kind or spelling',
        )
      if label in present:
        raise YardstickError(f'the union {label!r} of {name!r} has the name of a value')
      found.append(((name,), (label,), frozenset((value,) for value in members)))
  features, values, sets_of_levels = zip(*found)
  true = np.array([_evaluate(f, members, known) for f, _, members in found])
  for (feature, level, _), row in zip(found, true):
    _check_some(feature, level, row)
  return Predicates(features, values, sets_of_levels, true)


def score_f1(active: Active, predicates: Predicates) -> DetectorScores:
  """Scores every latent as a detector of every predicate.

  Raises:
    YardstickError: not a mask [B, M], or another number of prompts.
  """
  mask = as_mask('active', active, 2)
  check_rows('active', len(mask), predicates.true.shape[1])
  true = predicates.true.astype(np.float64)
  hits = true @ mask
  n_true, n_active = true.sum(1)[:, None], mask.sum(0)[None].astype(np.float64)
  # `Predicates.at` may have predicates that are true of no prompt: recall and F1 are 0 there, and not NaN.
  precision, recall = (hits / np.maximum(n, 1) for n in (n_active, n_true))
  f1 = 2 * hits / np.maximum(n_true + n_active, 1)
  always = 2 * n_true[:, 0] / (n_true[:, 0] + len(mask))
  return DetectorScores(predicates, precision, recall, f1, always)


def _evaluate(
  feature: tuple[str, ...], members: frozenset[Level], known: Mapping[str, np.ndarray]
) -> Bool[np.ndarray, ' B']:
  """Whether a statement is true of each prompt."""
  rows = zip(*(known[name].tolist() for name in feature))
  return np.array([row in members for row in rows], bool)


def _check_some(feature: tuple[str, ...], level: Level, true: Bool[np.ndarray, ' B']) -> None:
  if not true.any() or true.all():
    raise YardstickError(
      f'{"+".join(feature)} = {level} is true of {"no" if not true.any() else "every"} prompt',
      cause='a union with values of another kind or spelling, or with all values',
    )
