"""Part of the benchmark `facts`: the cost of a Cartesian product of names, on the first four layers of SmolLM2-135M.

100 first names and 100 surnames, each name three tokens; 'mlp_pre' and 'mlp_post' of four layers are read, and summed
on the host for non-linear excesses. Tokens are random.

cartesian_over_batched    seconds of the product with a shared prefix, as an experiment reads it, over those of plain
                          passes of the same 30,000 tokens in batches of 256 names, which read nothing
cartesian_whole           the same with every name in a whole pass, for models without a cache
cartesian_recompiles      number of compilations by other names
cartesian_difference      largest difference of the excesses between both, over the largest excess
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from mechjax.facts.names import NameProduct
from mechjax.facts.prefixes import share_prefix
from mechjax.facts.products import ProductSums, read_product
from mechjax.facts.reads import read_whole
from mechjax.models import ours

NAMES, LAYERS, BATCH, ROUNDS = 100, 4, 256, 3
SITES = f'{{mlp_pre,mlp_post}}.{{0..{LAYERS - 1}}}'
TARGETS = {'cartesian_over_batched': '<= 1.1', 'cartesian_recompiles': '0'}


def draw_names(n_vocab: int, seed: int) -> NameProduct:
  """A list of `NAMES` names of random tokens, each token once."""
  tokens = np.random.default_rng(seed).choice(np.arange(100, n_vocab), (NAMES, 2), replace=False)
  return NameProduct.of({str(row): row for row in tokens}, prefix=[0])


def keep_layers(model: Any) -> Any:
  """The first `LAYERS` layers of a model."""
  local = model.config.local[:LAYERS] if model.config.local else model.config.local
  config = dataclasses.replace(model.config, n_layers=LAYERS, local=local)
  layers = jax.tree.map(lambda x: x[:LAYERS], model.params['layers'])
  return ours.forward({**model.params, 'layers': layers}, config)


def measure(model: Any) -> dict[str, Any]:
  """All metrics of this file, of a model that our decoder runs."""
  model = keep_layers(model)
  step, new_cache = model.generator.step, model.generator.new_cache
  names, others = (draw_names(model.n_vocab, seed) for seed in (0, 1))
  shared = share_prefix(step, new_cache, model.params, names.prefix, SITES)
  whole = read_whole(model.apply, model.params, names.prefix, SITES)
  rows = names.rows(np.array([*np.ndindex(names.shape)]))
  plain = jax.jit(lambda params, tokens: model.forward_until(params, tokens, LAYERS, None))
  batches = [rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH)]
  scale = len(rows) / (len(batches) * BATCH)
  calls = {
    'shared': lambda: read_product(shared, names, batch=BATCH).excess(),
    'whole': lambda: read_product(whole, names, batch=BATCH).excess(),
    'plain': lambda: [jax.block_until_ready(plain(model.params, x)) for x in batches][-1],
  }
  by_prefix, by_pass = (calls[name]() for name in ('shared', 'whole'))
  jax.block_until_ready(plain(model.params, batches[0]))
  height, width = map(len, ProductSums(names, batch=BATCH).tiles[0])
  with timing.compilations() as again:
    for read in (shared, whole):
      read(others.first[:height], others.last[:width])
  times = timing.interleave(calls, rounds=ROUNDS, warmup=0)
  post, other = by_prefix['mlp_post'], by_pass['mlp_post']
  return {
    'cartesian_over_batched': times.ratio('shared', 'plain') / scale,
    'cartesian_whole': times.ratio('whole', 'plain') / scale,
    'cartesian_seconds': times.median('shared'),
    'cartesian_recompiles': again.count,
    'cartesian_difference': float(np.abs(post - other).max() / np.abs(other).max()),
  }
