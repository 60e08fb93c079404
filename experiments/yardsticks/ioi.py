"""The part on the indirect object: supervised codes as the upper line, and dictionaries by three tests.

One half of the prompts fits codes and chooses latents; all numbers are of the other half. LD is the logit of the
indirect object minus that of the subject, after the prompt.

    1  sufficiency and necessity of reconstructions
    2  control: another value of io, s, pos or, as a control, thing. An edit is right where the likeliest token is that
       after the true activation of the changed prompt. Supervised codes, k latents by an oracle, k latents by F1, and
       no edit at all, which is right where the change does not matter
    3  latents that can be read, and sufficiency and necessity of these alone, the others at their means

    found = measure_ioi(trial, passes, dictionaries, keep)

`keep(name, compute)` returns a finished step from its file, or computes it: each kind of code and each dictionary is
one, so that an interruption costs one of them at most.

Sharp edge: the number of readable latents and the size of codes are of the half that chooses, like the choice itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from experiments.yardsticks.dictionaries import Dictionary, add_baselines
from experiments.yardsticks.passes import Passes
from experiments.yardsticks.trial import Change, Trial, give_mean, give_share
from mechjax import yardsticks
from mechjax.errors import YardstickError

CODES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
  'mean': ('mean', ()),
  'least squares': ('mse', ()),
  'least squares, coupled': ('mse', (('io', 'pos'), ('s', 'pos'))),
}
"""Method and coupled attributes of the supervised codes."""

Keep = Callable[[str, Callable[[], Any]], Any]
"""(name, function) -> the plain result of the function, from its file or computed."""


def measure_ioi(
  trial: Trial, passes: Passes, dictionaries: Sequence[Dictionary], keep: Keep
) -> dict[str, Any]:
  """All tests; see the head of this file.

  Returns:
    'ability': shares of right and of top answers. 'patched': scores of the true activations of each change. 'unedited':
    scores without an edit. 'codes': results of each kind of code. 'dictionaries': results of each dictionary and of the
    baselines.
  """
  train, test = trial.train, trial.test
  clean = passes.answer(test.placed, test.ids)
  every = [*dictionaries, *add_baselines(trial.settings, train.acts, dictionaries)]
  return {
    'prompts': [len(train.acts), len(test.acts)],
    'ability': {
      'above_other': give_share(clean.wanted[:, 0] > clean.wanted[:, 1]),
      'top': give_share(clean.top == test.prompts.answers),
    },
    'patched': {change.name: change.score(change.patched) for change in trial.changes},
    'unedited': {change.name: change.score(clean.top) for change in trial.changes},
    'codes': {
      name: keep(f'codes_{i}', functools.partial(_measure_codes, trial, *how))
      for i, (name, how) in enumerate(CODES.items())
    },
    'dictionaries': {
      one.name: keep(f'dictionary_{i}', functools.partial(_measure_dictionary, trial, one))
      for i, one in enumerate(every)
    },
  }


def _measure_codes(
  trial: Trial, method: str, coupled: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
  train, test = trial.train, trial.test
  codes = yardsticks.fit_codes(train.acts, train.labels, method, coupled=coupled)
  edits = {}
  try:
    hat = codes.reconstruct(test.labels)
    for change in trial.changes:
      new = {change.name: change.half.labels[change.name]}
      edits[change.name] = change.score(trial.top(codes.edit(test.acts, test.labels, new)))
  except YardstickError as e:  # too few prompts for this parametrisation
    return {'reason': f'{e.what} {e.where or ""}'}
  return {
    'fvu': trial.fvu(hat),
    'variance': {'+'.join(k): v for k, v in codes.variance_shares(train.acts).items()},
    'recovery': trial.recover(hat),
    'edits': edits,
  }


def _measure_dictionary(trial: Trial, one: Dictionary) -> dict[str, Any]:
  train, test = trial.train, trial.test
  f_train, f = one.encode(train.acts), one.encode(test.acts)
  predicates = yardsticks.list_predicates(train.labels)
  scores = yardsticks.score_f1(f_train > 0, predicates)
  held_out = yardsticks.score_f1(f > 0, predicates.at(test.labels))
  readable = scores.is_interpretable(trial.settings.threshold)
  best = held_out.f1[scores.f1.argmax(0), np.arange(len(readable))]
  parts = yardsticks.count_parts(f_train > 0, train.labels['pos'])
  covered = (f[test.labels['pos']][:, list(parts.latents)] > 0).any(1)
  sizes, gram = _weigh(one, f), yardsticks.DecoderGram.of(one.W_dec)
  return {
    'place': one.place,
    'latents': len(one.W_dec),
    'l0': give_mean((f != 0).sum(1)),
    'fvu': trial.fvu(one.decode(f)),
    'recovery': trial.recover(one.decode(f)),
    'readable': {
      'n': int(readable.sum()),
      'recovery': trial.recover(one.decode(np.where(readable, f, f_train.mean(0)))),
      'f1': np.histogram(best, bins=20, range=(0, 1))[0].tolist(),
    },
    'attributes': _list_attributes(trial, scores, held_out),
    'parts_of_pos': [parts.n, give_share(covered)],
    'edits': {
      change.name: _edit(trial, one, gram, scores, f, sizes, change) for change in trial.changes
    },
  }


def _list_attributes(
  trial: Trial, scores: yardsticks.DetectorScores, held_out: yardsticks.DetectorScores
) -> list[dict[str, Any]]:
  """Attributes by the size of their codes, with F1 on the test half of the latents that are best on the other."""
  train = trial.train
  codes = yardsticks.fit_codes(train.acts, train.labels)
  f1 = np.take_along_axis(held_out.f1, scores.f1.argmax(1)[:, None], 1)[:, 0]
  there = held_out.predicates.true.any(1)
  rows = yardsticks.report_occlusion(codes, train.acts, scores, trial.settings.threshold)
  return [
    {
      'feature': '+'.join(row.feature),
      'variance': row.variance,
      'f1': give_mean(f1[there & scores.predicates.of_feature(*row.feature)]),
      'interpretable': row.interpretable,
      'hidden_by': ['+'.join(x) for x in row.hidden_by],
    }
    for row in rows
  ]


Sizes = tuple[Bool[np.ndarray, ' B'], Float[np.ndarray, 'live M']]
"""Mask of the prompts that have an active latent, and the weights of latents at these."""


def _weigh(one: Dictionary, f: Float[np.ndarray, 'B M']) -> Sizes:
  live = np.sum((f.astype(np.float64) @ one.W_dec) ** 2, 1) > 0
  return live, yardsticks.measure_weights(f[live], one.W_dec) if live.any() else np.zeros((0, 1))


def _edit(
  trial: Trial,
  one: Dictionary,
  gram: yardsticks.DecoderGram,
  scores: yardsticks.DetectorScores,
  f: Float[np.ndarray, 'B M'],
  sizes: Sizes,
  change: Change,
) -> dict[str, Any]:
  """Scores of edits of k latents, by the oracle and by F1, and the weight that the latents had."""
  acts, new = trial.test.acts, one.encode(change.half.acts)
  ks = [k for k in trial.settings.ks if k <= f.shape[1]]
  largest = max(ks, default=1)
  about = scores.predicates.of_feature(change.name)
  f1 = [_score_prompts(scores, about, half.labels) for half in (trial.test, change.half)]
  edits = {
    'oracle': yardsticks.edit_greedily(gram, f, new, acts, change.half.acts, largest),
    'f1': yardsticks.edit_by_score(f, new, np.maximum(*f1), largest),
  }
  live, weights = sizes
  found: dict[str, Any] = {}
  for kind, edit in edits.items():
    own = yardsticks.LatentEdit(edit.indices[live], edit.changes[live])
    found[kind] = {
      k: change.score(trial.top(edit.apply(acts, one.W_dec, k)))
      | {'weight': give_mean(yardsticks.sum_weights(weights, own, k)) if live.any() else None}
      for k in ks
    }
  return found


def _score_prompts(
  scores: yardsticks.DetectorScores,
  about: Bool[np.ndarray, ' predicates'],
  labels: dict[str, Shaped[np.ndarray, ' B']],
) -> Float[np.ndarray, 'B M']:
  """F1 of each latent for the value of one attribute at each prompt; 0 where the value did not occur."""
  there = scores.predicates.at(labels)
  true = there.true & about[:, None]
  return scores.of_prompts(dataclasses.replace(there, true=true))
