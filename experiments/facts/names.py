"""The names that a part works with, and random halves of them.

The same names must not choose a head and be scored by it, nor centre features and be scored by them: in every table one
half of the kept names chooses, centres and gives the means of ablations (`train`), and the other half is measured
(`test`). Halves are stratified by sport, and every one of them is drawn with its own seed.

    names = choose_names(settings, subject, saved)
    for half in names.draw_halves(settings): half.train, half.test        indices into names.index

Errors of accuracies are standard deviations over halves, corrected for the names that halves share (`correct_error`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from experiments.facts import relations
from experiments.facts.knowledge import SPORTS
from experiments.facts.prompts import AlignedPrompts, align, make_bare
from experiments.facts.settings import Settings
from experiments.facts.subject import WIDTH, Subject
from experiments.saved import Saved
from mechjax.errors import FactsError
from mechjax.probing.scoring import SeedMean
from mechjax.probing.splits import Split, split


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
  """Aligned names.

  Attributes:
    index: their numbers among the athletes, int [B].
    labels: index of the sport of each, int [B].
    prompts: prompts with one example.
    bare: a beginning token and the name.
  """

  index: Int[np.ndarray, ' B']
  labels: Int[np.ndarray, ' B']
  prompts: AlignedPrompts
  bare: AlignedPrompts

  def __len__(self) -> int:
    return len(self.index)

  def rows(self, some: Int[np.ndarray, ' _']) -> Names:
    """Some of the names."""
    return Names(self.index[some], self.labels[some], self.prompts.rows(some), self.bare.rows(some))

  def draw_halves(self, settings: Settings) -> list[Split]:
    """Random halves, stratified by sport."""
    first = settings.seed * settings.splits
    return [*split(self.labels, test=0.5, seeds=[first + i for i in range(settings.splits)])]


def make_names(subject: Subject, index: Int[np.ndarray, ' B']) -> Names:
  """Aligns some athletes.

  Raises:
    FactsError: names of different numbers of tokens.
  """
  prompts = [subject.prompts[i] for i in index]
  bare = make_bare(subject.model, prompts)
  return Names(index, subject.labels[index], align(prompts), align(bare))


def choose_names(settings: Settings, subject: Subject, saved: Saved) -> Names:
  """The kept names: of `WIDTH` tokens, with a probability of the right sport over the limit.

  Raises:
    FactsError: a sport has fewer than four of them, so that a half has fewer than two.
  """
  p, _ = relations.read_sports(settings, subject, saved)
  index = subject.aligned[p[subject.aligned] > settings.known]
  counts = np.bincount(subject.labels[index], minlength=len(SPORTS))
  if counts.min() < 4:
    held = ', '.join(f'{sport} {n}' for sport, n in zip(SPORTS, counts))
    raise FactsError(
      f'the model knows too few athletes of {WIDTH} tokens with p > {settings.known:g}: {held}',
      cause='a model that does not know athletes; a class needs four names, two in each half',
      hint='--parts=relations,local; or another --model, or a smaller --known',
    )
  return make_names(subject, index)


def correct_error(values: Float[np.ndarray, 'splits ...'], share: float = 1.0) -> np.ndarray:
  """Standard error of a mean over random splits of one set of names; see `SeedMean.error_for_new_examples`.

  Args:
    values: one for each split.
    share: number of measured names for each name that chooses or trains, 1 for halves.

  Returns:
    The errors, of the further axes; NaN for a single split.
  """
  table = np.asarray(values, float)
  if len(table) < 2:
    return np.full(table.shape[1:], np.nan)
  flat = table.reshape(len(table), -1)
  parts = round(1 / share) if share <= 1 else 1, round(share) if share > 1 else 1
  errors = [SeedMean.of(column).error_for_new_examples(*parts) for column in flat.T]
  return np.array(errors).reshape(table.shape[1:])
