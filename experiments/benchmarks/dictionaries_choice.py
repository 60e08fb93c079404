"""Part of the benchmark `dictionaries`: cost of a step of feature choice, compared with its matrix products.

d 768 -> 6,144, float32, batches of 4,096 tokens, k = 32. The whole step is timed: loss, gradients, optimiser, unit
rows, counters, thresholds, metrics. It cannot avoid five products of B x D x M, 10 BDM operations; their rate is that
of two bare products that are measured in the same round, x @ W_enc and f @ W_dec.

feature_choice_share           seconds of these products at the rate, over seconds of a step with budgets of Zipf's law
feature_choice_uniform_share   the same with equal budgets
batch_topk_share               the same of BatchTopK, one budget for all pairs of tokens and latents
choice_over_products           seconds of the selection alone, over those of the five products
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.sae import bare_products, stepping
from mechjax.sae import BatchTopK, FeatureChoice
from mechjax.sae.ops.columns import largest_of_columns

D, M, BATCH, K, ROUNDS = 768, 6144, 4096, 32, 5
SHAPE: dict[str, Any] = {'d_in': D, 'width': M, 'k': K}
ZIPF = FeatureChoice(**SHAPE, zipf_alpha=0.8, zipf_beta=4.0)
SAES = {
  'feature_choice': ZIPF,
  'feature_choice_uniform': FeatureChoice(**SHAPE),
  'batch_topk': BatchTopK(**SHAPE),
}
TARGETS = {'feature_choice_share': '>= 0.75'}


def measure() -> dict[str, float]:
  """All metrics of this file."""
  x = jax.random.normal(jax.random.key(0), (BATCH, D)) / np.sqrt(D)
  z = jax.random.normal(jax.random.key(1), (BATCH, M))
  budgets = ZIPF.token_budgets(BATCH)
  choose = jax.jit(largest_of_columns)
  calls = {name: stepping(sae, x) for name, sae in SAES.items()}
  calls |= {'bare': bare_products(BATCH), 'choice': lambda: choose(z, budgets)}
  times = timing.interleave(calls, rounds=ROUNDS, warmup=2)
  necessary = 10 / 4  # of the two bare products, which are 4 BDM
  metrics = {f'{name}_share': necessary * times.ratio('bare', name) for name in SAES}
  return metrics | {'choice_over_products': times.ratio('choice', 'bare') / necessary}
