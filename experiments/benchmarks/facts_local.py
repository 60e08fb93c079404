"""Part of the benchmark `facts`: the cost of truncated contexts of ten lengths, SmolLM2-135M, two texts of 65 tokens.

local_passes_for_ten_k    seconds of the comparison of all tokens for k = 1 to 10, over those of plain passes of the
                          same tokens (whole texts, and one row of eleven tokens for each of their tokens but one),
                          which read nothing and compute no logits
local_over_single         the same, over passes of one padded row for every token and k, from the number of tokens
local_recompiles          number of compilations by other texts
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from mechjax.facts.local import ContextComparison
from mechjax.facts.stream_centre import measure_centre, pad_texts
from mechjax.facts.windows import make_windows

TEXTS, TOKENS, MAX_K, BATCH, BOS, ROUNDS = 2, 65, 10, 64, 0, 3
TARGETS = {'local_passes_for_ten_k': '<= 1.3', 'local_recompiles': '0'}


def measure(model: Any) -> dict[str, Any]:
  """All metrics of this file."""
  random = np.random.default_rng(0)
  texts, others = random.integers(100, model.n_vocab, (2, TEXTS, TOKENS))
  forward, params = model.truncate_at('resid_post'), model.params
  centre = measure_centre(forward, params, [*texts], bos=BOS, batch=TEXTS)
  compare = ContextComparison(forward, MAX_K, BATCH, TEXTS)
  tokens, real = pad_texts([*texts], BOS)
  at = np.argwhere(real[:, 1:])
  at = at[at[:, 1] >= MAX_K]
  rows = make_windows(tokens, real, at, MAX_K).tokens
  blocks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
  blocks[-1] = np.pad(blocks[-1], ((0, BATCH - len(blocks[-1])), (0, 0)))
  plain = jax.jit(forward)
  calls = {
    'compare': lambda: compare(params, [*texts], centre, bos=BOS).cosines,
    'plain': lambda: [jax.block_until_ready(plain(params, x)) for x in (tokens, *blocks)][-1],
  }
  calls['compare']()
  with timing.compilations() as again:
    compare(params, [*others], centre, bos=BOS)
  times = timing.interleave(calls, rounds=ROUNDS)
  ratio = times.ratio('compare', 'plain')
  n_single = len(at) * MAX_K * (MAX_K + 1) + tokens.size
  n_plain = tokens.size + len(blocks) * BATCH * (MAX_K + 1)
  return {
    'local_passes_for_ten_k': ratio,
    'local_over_single': ratio * n_plain / n_single,
    'local_seconds': times.median('compare'),
    'local_recompiles': again.count,
  }
