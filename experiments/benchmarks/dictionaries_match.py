"""Part of the benchmark `dictionaries`: seconds to match two dictionaries of 1,536 latents of width 576 (SAE Match).

match_1536_s            seconds of `match`, the larger of two cases: a noisy copy in another order, as of two seeds
                        (cosines of pairs about 0.7), and two random dictionaries, which are the harder assignment
match_over_assignment   the same over scipy's linear_sum_assignment alone, on the similarities of the random ones
match_found             share of the pairs of the noisy copy that were found

Seconds are the smallest of five rounds: a machine with other load has no other absolute time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy

from experiments.benchmarks import timing
from mechjax.sae.analysis import match

M, D, ROUNDS = 1536, 576, 5
TARGETS = {'match_1536_s': '<= 1'}


def draw(random: np.random.Generator) -> dict[str, np.ndarray]:
  """A random dictionary, with rows of length about 1."""
  weights = random.standard_normal((2, M, D)).astype(np.float32) / np.float32(D) ** 0.5
  return {'W_enc': weights[0].T.copy(), 'W_dec': weights[1]}


def measure_matches() -> dict[str, Any]:
  """All metrics of this file; seconds."""
  random = np.random.default_rng(0)
  a, b, noise = draw(random), draw(random), draw(random)
  order = random.permutation(M)
  copy = {'W_enc': (a['W_enc'] + noise['W_enc'])[:, order], 'W_dec': (a['W_dec'] + noise['W_dec'])[order]}  # fmt: skip
  similarity = a['W_enc'].T @ b['W_enc'] + a['W_dec'] @ b['W_dec'].T
  calls = {
    'copy': lambda: match(a, copy).permutation,
    'random': lambda: match(a, b).permutation,
    'assignment': lambda: scipy.optimize.linear_sum_assignment(similarity, maximize=True)[1],
  }
  times = timing.interleave(calls, rounds=ROUNDS)
  return {
    'match_1536_s': max(min(times.seconds[name]) for name in ('copy', 'random')),
    'match_over_assignment': times.ratio('random', 'assignment'),
    'match_found': float((match(a, copy).permutation == np.argsort(order)).mean()),
  }
