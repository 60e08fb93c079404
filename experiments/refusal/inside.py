"""The direction inside the model: its cosine with the stream by layer, and the heads that write it.

Four sets of test prompts are compared, or five: negative ones, positive ones, and positive ones with a random suffix
and with the suffix of a file. The heads are the eight with the largest contributions on plain positive prompts; of
each, the attention of the last position to the instruction and to the suffix is summed.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from experiments.refusal.choosing import Chosen
from experiments.refusal.settings import Settings
from experiments.refusal.subject import Subject
from experiments.saved import Saved
from mechjax.steering import attribute_heads, insert_suffix, make_reader, measure_cosines
from mechjax.steering.suffixes import SuffixedPrompts


def look_inside(
  settings: Settings, subject: Subject, chosen: Chosen, saved: Saved
) -> dict[str, Any]:
  """Cosines and heads of each set of prompts.

  Returns:
    'cosines': for each set, the mean and the standard deviation over prompts before each layer. 'heads': (layer, head)
    of the eight largest. 'sets': for each set, their contributions ('contribution') and the attention ('instruction',
    'suffix').
  """
  key = [chosen.key, json.dumps(subject.suffixes)]
  return saved.json('inside', key, lambda: _look_inside(settings, subject, chosen))


def list_sets(subject: Subject) -> dict[str, SuffixedPrompts]:
  """The sets of prompts that are compared, with the plain positive prompts first."""
  tests, (positive, negative) = subject.prompts['test'], subject.study.sets
  place = {'before_end': subject.before_end, 'after_start': subject.after_start}
  sets = {positive: insert_suffix(tests['positive'], [], **place)}
  for name, ids in subject.suffixes.items():
    sets[f'{positive} + {name}'] = insert_suffix(tests['positive'], ids, **place)
  sets[negative] = insert_suffix(tests['negative'], [], **place)
  return sets


def _look_inside(settings: Settings, subject: Subject, chosen: Chosen) -> dict[str, Any]:
  model, r = subject.model, chosen.direction.direction
  read, W_O = make_reader(model.apply, model.params), model.params['layers']['attn']['o']
  cosines, sets, heads = {}, {}, None
  for name, suffixed in list_sets(subject).items():
    found = measure_cosines(read, suffixed.prompts, r, batch=settings.batch)
    cosines[name] = {'mean': found.mean(0).tolist(), 'sd': found.std(0).tolist()}
    report = attribute_heads(
      model.apply, model.params, W_O, suffixed, r, heads=heads, batch=settings.batch
    )
    heads = report.heads
    sets[name] = {
      'contribution': [float(report.contributions[head]) for head in heads],
      'total': float(np.sum(report.contributions)),
      **{span: mass.tolist() for span, mass in report.attention.items()},
    }
  return {'cosines': cosines, 'heads': heads, 'sets': sets}
