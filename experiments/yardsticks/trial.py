"""Prompts of the indirect object in two halves, and the tests that codes and dictionaries share.

    trial = make_trial(settings, model, passes, prompts)
    trial.train.acts, trial.test.labels
    trial.recover(x_hat)                                   sufficiency and necessity at the test half
    trial.changes[0].score(trial.top(edited))              answers after an edit, against those after the true patch

Everything that an edit is compared with is computed once, since there are hundreds of edits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from experiments import ioi_factorial
from experiments.ioi_factorial import FactorialPrompts
from experiments.yardsticks.passes import Passes, PlacedPrompts, Prepared
from experiments.yardsticks.settings import Settings
from mechjax import yardsticks
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.steering import Proportion

LABELS = ('io', 's', 'pos', 'thing')
"""The attributes that have codes, and that are changed; `thing` is a control."""


@dataclasses.dataclass(frozen=True, eq=False)
class Half:
  """Prompts with their activations.

  Attributes:
    prompts: the prompts.
    placed: the same, with the column that is read.
    acts: activations there.
  """

  prompts: FactorialPrompts
  placed: PlacedPrompts
  acts: Float[np.ndarray, 'B D']

  @property
  def labels(self) -> dict[str, Shaped[np.ndarray, ' B']]:
    """The attributes that have codes."""
    return {name: self.prompts.attributes[name] for name in LABELS}

  @property
  def ids(self) -> Int[np.ndarray, 'B 2']:
    """Ids of both names."""
    return np.stack([self.prompts.answers, self.prompts.others], 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
  """Test prompts with another value of one attribute.

  Attributes:
    name: the attribute.
    half: the changed prompts.
    patched: likeliest token after the unchanged prompts with the activations of the changed ones.
  """

  name: str
  half: Half
  patched: Int[np.ndarray, ' B']

  def score(self, top: Int[np.ndarray, ' B']) -> dict[str, list[float]]:
    """Shares of likeliest tokens that are those of the true patch, or the right answers to the changed prompts."""
    right = self.half.prompts.answers
    found = yardsticks.score_edits(top, patched=self.patched, expected=right)
    return {'as_patched': give(found.as_patched), 'as_expected': give(found.as_expected)}


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """Material of the tests of codes and dictionaries.

  Attributes:
    settings: settings of the experiment.
    site: the site.
    train, test: both halves.
    edited: the test prompts, ready for edits.
    changes: the test prompts with another value of each attribute.
  """

  settings: Settings
  site: str
  train: Half
  test: Half
  edited: Prepared
  changes: tuple[Change, ...]

  def top(self, values: Float[np.ndarray, 'B D']) -> Int[np.ndarray, ' B']:
    """Likeliest token after each test prompt with other activations."""
    return self.edited.answer(self.test.ids, values).top

  def recover(self, hat: Float[np.ndarray, 'B D']) -> dict[str, Any]:
    """Sufficiency and necessity with their errors; the reason if there is nothing to recover."""
    acts = {self.site: self.test.acts}
    try:
      found = yardsticks.measure_recovery(self._difference, acts, {self.site: hat})
    except YardstickError as e:
      return {'reason': e.what}
    return {
      'sufficiency': [found.sufficiency.value, found.sufficiency.standard_error],
      'necessity': [found.necessity.value, found.necessity.standard_error],
      'clean': found.clean,
      'ablated': found.ablated,
    }

  def fvu(self, hat: Float[np.ndarray, 'B D']) -> list[float]:
    """Share of the variance of the test activations that a reconstruction misses, with its error."""
    x = np.asarray(self.test.acts, np.float64)
    missed, whole = (np.sum(d**2, 1) for d in (x - hat, x - x.mean(0)))
    found = yardsticks.Ratio.of(missed, whole)
    return [found.value, found.standard_error]

  def _difference(self, values: dict[str, np.ndarray]) -> Float[np.ndarray, ' B']:
    found = self.edited.answer(self.test.ids, values[self.site]).wanted
    return found[:, 0].astype(np.float64) - found[:, 1]


def make_trial(
  settings: Settings, model: LanguageModel, passes: Passes, prompts: FactorialPrompts
) -> Trial:
  """Reads the activations of both halves and of all changed prompts, and patches the latter into the test half."""
  middle = len(prompts) // 2
  train, test = (
    _read(settings, passes, prompts.rows(rows))
    for rows in (np.arange(middle), np.arange(middle, len(prompts)))
  )
  edited, changes = passes.prepare(test.placed), []
  for name in LABELS:
    other = ioi_factorial.change(model, test.prompts, name, settings.seed)
    half = _read(settings, passes, other)
    changes.append(Change(name, half, edited.answer(test.ids, half.acts).top))
  return Trial(settings, passes.site, train, test, edited, tuple(changes))


def give(share: Proportion) -> list[float]:
  """A share with Wilson's interval, for JSON: count, total, low, high."""
  return [share.count, share.total, *share.interval()]


def give_share(hits: Shaped[np.ndarray, ' B']) -> list[float]:
  """The share of hits."""
  return give(Proportion(int(np.sum(hits)), len(hits)))


def give_mean(values: Shaped[np.ndarray, ' n']) -> list[float]:
  """Mean and standard error; NaN for the error of one value."""
  n = len(values)
  error = float(np.std(values, ddof=1)) / n**0.5 if n > 1 else float('nan')
  return [float(np.mean(values)), error]


def _read(settings: Settings, passes: Passes, prompts: FactorialPrompts) -> Half:
  placed = PlacedPrompts(prompts.tokens, prompts.columns[settings.place], prompts.columns['END'])
  return Half(prompts, placed, passes.read(placed))
