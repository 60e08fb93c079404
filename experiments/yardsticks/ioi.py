"""The part on the indirect object: supervised codes as the upper line, and dictionaries by three tests.

One half of the prompts fits codes and scores latents; all numbers are of the other half. LD is the logit of the
indirect object minus that of the subject, after the prompt.

    1  sufficiency and necessity of reconstructions
    2  control: another value of io, s, pos or, as a control, thing. An edit is right where the likeliest token is that
       after the true activation of the changed prompt. Supervised codes, k latents by an oracle, k latents by F1, and
       no edit at all, which is right where the change does not matter
    3  latents that can be read, and sufficiency and necessity of these alone, the others at their means
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments import ioi_factorial
from experiments.ioi_factorial import FactorialPrompts
from experiments.yardsticks.dictionaries import Dictionary, add_baselines
from experiments.yardsticks.passes import Passes, PlacedPrompts
from experiments.yardsticks.settings import Settings
from mechjax import yardsticks
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.steering import Proportion

CODES = {
  'mean': ('mean', ()),
  'least squares': ('mse', ()),
  'least squares, coupled': ('mse', (('io', 'pos'), ('s', 'pos'))),
}
"""Method and coupled attributes of the supervised codes."""
LABELS = ('io', 's', 'pos', 'thing')
CHANGES = ('io', 's', 'pos', 'thing')


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
  def labels(self) -> dict[str, np.ndarray]:
    """The attributes that have codes."""
    return {name: self.prompts.attributes[name] for name in LABELS}

  @property
  def ids(self) -> np.ndarray:
    """Ids of both names, [B, 2]."""
    return np.stack([self.prompts.answers, self.prompts.others], 1)


def measure_ioi(
  settings: Settings,
  model: LanguageModel,
  passes: Passes,
  dictionaries: list[Dictionary],
  prompts: FactorialPrompts,
) -> dict[str, Any]:
  """All tests; see the head of this file.

  Returns:
    'ability': shares of right and of top answers. 'codes': results of each kind of code. 'dictionaries': results of
    each dictionary and of the baselines. 'unedited': scores without an edit, of each change.
  """
  middle = len(prompts) // 2
  train, test = (
    _read(settings, passes, prompts.rows(rows))
    for rows in (np.arange(middle), np.arange(middle, len(prompts)))
  )
  clean = passes.answer(test.placed, test.ids)
  changed = {name: _Change.of(settings, model, passes, test, name) for name in CHANGES}
  run = _make_run(passes, test)
  width = max([len(one.W_dec) for one in dictionaries], default=4 * train.acts.shape[1])
  every = [*dictionaries, *add_baselines(settings, train.acts, width)]
  return {
    'prompts': [len(train.acts), len(test.acts)],
    'ability': {
      'above_other': _share(clean.wanted[:, 0] > clean.wanted[:, 1]),
      'top': _share(clean.top == test.prompts.answers),
    },
    'unedited': {name: _score(change, clean.top) for name, change in changed.items()},
    'codes': {
      name: _measure_codes(train, test, run, passes, changed, *how) for name, how in CODES.items()
    },
    'dictionaries': {
      one.name: _measure_dictionary(settings, one, train, test, run, passes, changed)
      for one in every
    },
  }


@dataclasses.dataclass(frozen=True, eq=False)
class _Change:
  """Test prompts with another value of one attribute."""

  name: str
  half: Half
  patched: np.ndarray
  expected: np.ndarray

  @classmethod
  def of(
    cls, settings: Settings, model: LanguageModel, passes: Passes, test: Half, name: str
  ) -> _Change:
    other = ioi_factorial.change(model, test.prompts, name, settings.seed)
    half = _read(settings, passes, other)
    patched = passes.answer(test.placed, test.ids, half.acts).top
    return cls(name, half, patched, other.answers)


def _read(settings: Settings, passes: Passes, prompts: FactorialPrompts) -> Half:
  placed = PlacedPrompts(prompts.tokens, prompts.columns[settings.place], prompts.columns['END'])
  return Half(prompts, placed, passes.read(placed))


def _make_run(passes: Passes, test: Half) -> yardsticks.recovery.Run:
  def run(values: dict[str, np.ndarray]) -> np.ndarray:
    found = passes.answer(test.placed, test.ids, values[passes.site]).wanted
    return found[:, 0].astype(np.float64) - found[:, 1]

  return run


def _recover(
  run: yardsticks.recovery.Run, site: str, acts: np.ndarray, hat: np.ndarray
) -> dict[str, Any]:
  """Sufficiency and necessity with their errors; the reason if there is nothing to recover."""
  try:
    found = yardsticks.measure_recovery(run, {site: acts}, {site: hat})
  except YardstickError as e:
    return {'reason': e.what}
  return {
    'sufficiency': [found.sufficiency.value, found.sufficiency.standard_error],
    'necessity': [found.necessity.value, found.necessity.standard_error],
    'clean': found.clean,
    'ablated': found.ablated,
  }


def _share(hits: np.ndarray) -> list[float]:
  one = Proportion(int(np.sum(hits)), len(hits))
  return [one.count, one.total, *one.interval()]


def _score(change: _Change, top: np.ndarray) -> dict[str, Any]:
  found = yardsticks.score_edits(top, patched=change.patched, expected=change.expected)
  parts = dataclasses.asdict(found)
  return {k: [v['count'], v['total'], *getattr(found, k).interval()] for k, v in parts.items()}


def _measure_codes(
  train: Half,
  test: Half,
  run: yardsticks.recovery.Run,
  passes: Passes,
  changed: dict[str, _Change],
  method: str,
  coupled: tuple[tuple[str, str], ...],
) -> dict[str, Any]:
  codes = yardsticks.fit_codes(train.acts, train.labels, method, coupled=coupled)
  edits = {}
  try:
    hat = codes.reconstruct(test.labels)
    for change in changed.values():
      codes.reconstruct(change.half.labels)
  except YardstickError as e:  # too few prompts for this parametrisation
    return {'reason': f'{e.what} {e.where or ""}'}
  for name, change in changed.items():
    values = codes.edit(test.acts, test.labels, {name: change.half.prompts.attributes[name]})
    edits[name] = _score(change, passes.answer(test.placed, test.ids, values).top)
  return {
    'share_explained': codes.share_explained(test.acts, test.labels),
    'variance': {'+'.join(k): v for k, v in codes.variance_shares(train.acts).items()},
    'recovery': _recover(run, passes.site, test.acts, hat),
    'edits': edits,
  }


def _measure_dictionary(
  settings: Settings,
  one: Dictionary,
  train: Half,
  test: Half,
  run: yardsticks.recovery.Run,
  passes: Passes,
  changed: dict[str, _Change],
) -> dict[str, Any]:
  f_train, f = one.encode(train.acts), one.encode(test.acts)
  predicates = yardsticks.list_predicates(train.labels)
  scores = yardsticks.score_f1(f_train > 0, predicates)
  readable = scores.is_interpretable(settings.threshold)
  codes = yardsticks.fit_codes(train.acts, train.labels)
  hidden = yardsticks.report_occlusion(codes, train.acts, scores, settings.threshold)
  parts = yardsticks.count_parts(f_train > 0, train.prompts.attributes['pos'])
  means = f_train.mean(0)
  kept = one.decode(np.where(readable, f, means))
  gram = yardsticks.DecoderGram.of(one.W_dec)
  return {
    'place': one.place,
    'latents': len(one.W_dec),
    'l0': float((f != 0).sum(1).mean()),
    'fvu': float(np.sum((one.decode(f) - test.acts) ** 2) / np.sum((test.acts - test.acts.mean(0)) ** 2)),
    'recovery': _recover(run, passes.site, test.acts, one.decode(f)),
    'readable': {
      'n': int(readable.sum()),
      'recovery': _recover(run, passes.site, test.acts, kept),
      'f1': np.histogram(scores.best, bins=20, range=(0, 1))[0].tolist(),
    },
    'attributes': [
      {'feature': '+'.join(row.feature), 'variance': row.variance, 'best_f1': row.best_f1,
       'interpretable': row.interpretable, 'hidden_by': ['+'.join(x) for x in row.hidden_by]}
      for row in hidden
    ],
    'parts_of_pos': [parts.n, parts.covered],
    'edits': {
      name: _edit(settings, one, gram, scores, test, f, passes, change)
      for name, change in changed.items()
    },
  }  # fmt: skip


def _edit(
  settings: Settings,
  one: Dictionary,
  gram: yardsticks.DecoderGram,
  scores: yardsticks.DetectorScores,
  test: Half,
  f: np.ndarray,
  passes: Passes,
  change: _Change,
) -> dict[str, Any]:
  """Scores of edits of k latents, by the oracle and by F1, and the weight of the latents that were removed."""
  new = one.encode(change.half.acts)
  k = min(max(settings.ks), f.shape[1])
  about = scores.predicates.of_feature(change.name)
  before, after = (_score_prompts(scores, about, half.labels) for half in (test, change.half))
  edits = {
    'oracle': yardsticks.edit_greedily(gram, f, new, test.acts, change.half.acts, k),
    'f1': yardsticks.edit_by_score(f, new, np.maximum(before, after), k),
  }
  found: dict[str, Any] = {}
  live = (f @ one.W_dec != 0).any(1)
  weights = yardsticks.measure_weights(f[live], one.W_dec) if live.any() else None
  for kind, edit in edits.items():
    found[kind] = {}
    for n in (n for n in settings.ks if n <= k):
      values = edit.apply(test.acts, one.W_dec, n)
      own = yardsticks.LatentEdit(edit.indices[live], edit.changes[live])
      size = None if weights is None else float(yardsticks.sum_weights(weights, own, n).mean())
      top = passes.answer(test.placed, test.ids, values).top
      found[kind][n] = _score(change, top) | {'weight': size}
  return found


def _score_prompts(
  scores: yardsticks.DetectorScores, about: np.ndarray, labels: dict[str, np.ndarray]
) -> np.ndarray:
  """F1 of each latent for the value of one attribute at each prompt; 0 where the value did not occur."""
  there = scores.predicates.at(labels)
  true = there.true & about[:, None]
  return scores.of_prompts(dataclasses.replace(there, true=true))
