"""A model with the athletes' prompts, and made-up names of the same first names and surnames.

Everything that needs the tokenizer is done here, before anything is computed, so that a sport of several tokens or a
name that cannot be placed is found in the first seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from experiments.facts import knowledge
from experiments.facts.knowledge import Athlete, Relation
from experiments.facts.prompts import Prompt, encode
from experiments.facts.settings import Settings
from mechjax.errors import FactsError
from mechjax.models.language_model import LanguageModel

WIDTH = 2
"""Tokens of the names that are aligned: a first name and a surname."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model and its athletes.

  Attributes:
    model: the model.
    relation: the relation of athletes and sports.
    athletes: the athletes.
    prompts: their prompts with one example.
    labels: index of each athlete's sport in `knowledge.SPORTS`, int [B].
    sports: token of each sport.
    first_names, surnames: parts of names that are one token each, with their ids, in the order of the athletes.
  """

  model: LanguageModel
  relation: Relation
  athletes: list[Athlete]
  prompts: list[Prompt]
  labels: Int[np.ndarray, ' B']
  sports: Int[np.ndarray, ' C']
  first_names: dict[str, int]
  surnames: dict[str, int]

  @property
  def aligned(self) -> Int[np.ndarray, ' names']:
    """Athletes whose names have `WIDTH` tokens."""
    return np.flatnonzero([one.width == WIDTH for one in self.prompts])

  def make_pairs(self, n: int, seed: int) -> list[Prompt]:
    """Prompts of made-up names: different pairs of a first name and a surname that are not in the list.

    Args:
      n: number of prompts, or all pairs if there are fewer.
      seed: seed of the choice.
    """
    listed = {one.subject for one in self.prompts}
    every = [
      pair
      for pair in itertools.product(self.first_names.values(), self.surnames.values())
      if pair not in listed
    ]
    chosen = np.random.default_rng(seed).permutation(len(every))[:n]
    return [self.place(every[i]) for i in sorted(chosen.tolist())]

  def place(self, ids: Sequence[int]) -> Prompt:
    """The prompt of a name that is given as token ids."""
    one = self.prompts[0]
    whole = (*one.ids[: one.start], *ids, *one.ids[one.stop :])
    return Prompt(whole, one.start, one.start + len(ids))


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Makes the prompts of all athletes.

  Raises:
    FactsError: the file of athletes cannot be read or has fewer than two of a sport; a name whose tokens are
      not separate from those around it.
    MechjaxError: a sport that is several tokens.
  """
  path = Path(settings.athletes) if settings.athletes else knowledge.ATHLETES
  athletes = knowledge.read_athletes(path)
  relation = knowledge.make_sport(athletes)
  around = relation.around()
  sports = np.array([model.token(f' {sport}') for sport in knowledge.SPORTS])
  prompts = [encode(model, around[0], one.name, around[1]) for one in athletes]
  labels = np.array([knowledge.SPORTS.index(one.sport) for one in athletes])
  first_names, surnames = split_names(model, around, athletes, prompts)
  subject = Subject(model, relation, athletes, prompts, labels, sports, first_names, surnames)
  check_ends(prompts)
  return subject


def split_names(
  model: LanguageModel,
  around: tuple[str, str],
  athletes: Sequence[Athlete],
  prompts: Sequence[Prompt],
) -> tuple[dict[str, int], dict[str, int]]:
  """First names and surnames that are one token, with their ids; names of two words only."""
  first_names: dict[str, int] = {}
  surnames: dict[str, int] = {}
  for athlete, prompt in zip(athletes, prompts, strict=True):
    words = athlete.name.split(' ')
    if len(words) != 2:
      continue
    first = encode(model, around[0], words[0], around[1])
    if first.subject != prompt.subject[: first.width]:
      continue
    if first.width == 1:
      first_names.setdefault(words[0], first.subject[0])
    if prompt.width - first.width == 1:
      surnames.setdefault(words[1], prompt.subject[-1])
  return first_names, surnames


def check_ends(prompts: Sequence[Prompt]) -> None:
  """Checks that all prompts have one text before and after the subject.

  Raises:
    FactsError: they do not, so that a position counted from the end would be another token in some rows.
  """
  ends = {(one.ids[: one.start], one.ids[one.stop :]) for one in prompts}
  if len(ends) > 1:
    raise FactsError(
      f'the text around the names has {len(ends)} different tokenizations',
      cause='a tokenizer that splits a text depending on the name in it',
    )
