"""Compiled programs as a part of the experiment: the residual stream of each equals its variables.

    measure_programs(settings)['histogram']       largest difference of each variable, and what supervised codes explain

The texts are all texts of four words over three words, so that every value of every variable occurs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from experiments.yardsticks import tracr_programs
from experiments.yardsticks.settings import Settings
from mechjax import extras, harvest, yardsticks

WORDS, LENGTH = ('a', 'b', 'c'), 4


def check_installed() -> None:
  """Raises MissingExtraError unless tracr is installed."""
  extras.require('tracr.compiler.compiling', 'flax-models')


def measure_programs(settings: Settings) -> dict[str, Any]:
  """Compares every program with its variables.

  Returns:
    For each program: 'variables', the largest difference of each between the residual stream and the interpreter;
    'right', the share of right outputs; 'explained', the share of the variance of the last residual stream that
    codes of word, position and output explain together.
  """
  from patches import tracr

  texts = [list(words) for words in itertools.product(WORDS, repeat=LENGTH)]
  with tracr.PATCHER:
    return {name: _measure(name, texts) for name in tracr_programs.PROGRAMS}


def _measure(name: str, texts: list[list[str]]) -> dict[str, Any]:
  compiled = tracr_programs.compile_program(name, WORDS, LENGTH)
  truth = [tracr_programs.PROGRAMS[name].truth(text) for text in texts]
  found = compiled.run(texts)
  right = [_equal(a, b) for row, known in zip(found, truth) for a, b in zip(row, known)]
  variables = tracr_programs.read_variables(compiled, texts)
  acts = harvest.reap(compiled.forward, sites='resid_post')(compiled.params, compiled.encode(texts))
  last = np.asarray(acts.stack('resid_post')[-1])[:, 1:].reshape(-1, len(compiled.labels))
  labels = {
    'word': np.array(texts).ravel(),
    'place': np.tile(np.arange(LENGTH), len(texts)),
    'output': np.array([str(x) for row in truth for x in row]),
  }
  codes = yardsticks.fit_codes(last, labels, 'mse')
  return {
    'width': len(compiled.labels),
    'right': float(np.mean(right)),
    'variables': {k: float(np.abs(a - b).max()) for k, (a, b) in variables.items()},
    'explained': codes.share_explained(last, labels),
  }


def _equal(a: Any, b: Any) -> bool:
  return abs(a - b) < 1e-4 if isinstance(b, int | float) else a == b
