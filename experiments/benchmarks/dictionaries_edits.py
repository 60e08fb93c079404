"""Part of the benchmark `dictionaries`: the cost of greedy edits of latents, 512 prompts, M 4,608, D 576, k 8.

greedy_edit_over_encodes   seconds of `edit_greedily` with the Gram matrix at hand, over those of a jitted encoder
                           of one set of prompts (an edit starts from two such encodings); latents are TopK 32
gram_over_encodes          seconds of the Gram matrix, which a dictionary needs once, over the same
edit_recompiles            number of compilations by other prompts
codes_seconds              seconds to fit least-squares codes of 2,000 prompts with 24 + 24 + 2 values, D 576
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import sae
from mechjax.yardsticks import DecoderGram, edit_greedily, fit_codes

PROMPTS, D, M, ACTIVE, K, ROUNDS = 512, 576, 4608, 32, 8, 7
TARGETS = {'greedy_edit_over_encodes': '<= 3', 'edit_recompiles': '0'}


def measure() -> dict[str, Any]:
  """All metrics of this file."""
  one = sae.TopK(d_in=D, width=M, k=ACTIVE)
  params = one.init(jax.random.key(0))
  encode = jax.jit(one.encode)
  acts, targets, others = jax.random.normal(jax.random.key(1), (3, PROMPTS, D), jnp.float32)
  f, new, more = (encode(params, x) for x in (acts, targets, others))
  gram = DecoderGram.of(params['W_dec'])
  calls = {
    'encode': lambda: encode(params, acts),
    'edit': lambda: edit_greedily(gram, f, new, acts, targets, K).changes,
    'gram': lambda: DecoderGram.of(params['W_dec']).gram,
  }
  calls['edit']()
  with timing.compilations() as again:
    edit_greedily(gram, new, more, targets, others, K)
  times = timing.interleave(calls, rounds=ROUNDS)
  return {
    'greedy_edit_over_encodes': times.ratio('edit', 'encode'),
    'gram_over_encodes': times.ratio('gram', 'encode'),
    'encode_ms': 1e3 * times.median('encode'),
    'edit_ms': 1e3 * times.median('edit'),
    'edit_recompiles': again.count,
    'codes_seconds': measure_codes(),
  }


def measure_codes() -> float:
  """Median seconds of a fit of supervised codes."""
  random = np.random.default_rng(0)
  io, s = random.integers(24, size=(2, 2000))
  labels = {'io': io, 's': s, 'pos': random.integers(2, size=2000)}
  acts = random.standard_normal((2000, D))
  return timing.interleave({'fit': lambda: fit_codes(acts, labels).vectors}, 5).median('fit')


if __name__ == '__main__':
  timing.report('dictionaries: edits', measure(), TARGETS)
