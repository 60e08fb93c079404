"""Cost of attribution graphs, and how exact they are.

    python -m experiments.benchmarks.circuits                       five minutes on two cores, 4 GB
    python -m experiments.benchmarks.circuits --model=gemma3-270m   as above, with post-norms, QK-norm and windows

A prompt of 16 tokens, float32. Transcoders are random, TopK 32 of 2,048 latents at every layer: what a graph costs
depends on the number of active features, not on their meaning.

  row_over_headless_pass    seconds of a row in a batch of 64 random directions at the final norm, over those of a pass
                            of the prompt up to the final norm, without logits
  feature_row_over_pass     the same for rows of features of all layers, as a graph has them
  frozen_over_passes        seconds of `Frozen.of` with the maps of the model, over those of a pass with logits
  maps_over_passes          seconds of `Maps.of`, which a model needs once, over those of a pass
  graph_over_rows           seconds of a graph of 1,024 rows, over those of its rows alone in the same batches
  prune_8000_nodes_s        seconds to prune a graph of 8,000 features with a row each
  influence_8000_nodes_s    seconds of the influence of its nodes, a part of pruning
  largest_row_error         what is missing from the sum of a row, relative to its largest entry, over all rows
  rows_recompiles           compilations in further graphs of the same run with other targets
  dfa_over_forward          seconds of a pass of 16 texts of 128 tokens up to a layer that reads its heads, values and
                            patterns, and of the attribution of 64 latents of a dictionary there to heads and sources,
                            over those of the same pass that reads the heads alone
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest, sae
from mechjax.circuits import (
  Columns,
  Frozen,
  Graph,
  Maps,
  Replacement,
  Targets,
  attribute,
  attribute_rows,
  features,
  logits,
  probe,
  prune,
)
from mechjax.decomposition import dfa

_MODEL = flags.DEFINE_enum(
  'model', 'smollm2-135m', ['smollm2-135m', 'gemma3-270m'], 'the model that is explained'
)
PROMPT = (
  'When Mary and John went to the store, John gave a drink of milk to Mary and then went home'
)
LENGTH, LATENTS, ACTIVE, BATCH, ROWS, ROUNDS = 16, 2048, 32, 64, 1024, 9
TEXTS, TOKENS, EXPLAINED = 16, 128, 64
TARGETS = {
  'row_over_headless_pass': '<= 0.20',
  'frozen_over_passes': '<= 2.5',
  'graph_over_rows': '<= 1.1',
  'prune_8000_nodes_s': '<= 1',
  'largest_row_error': '<= 1e-5',
  'rows_recompiles': '0',
  'dfa_over_forward': '<= 1.05',
}


def transcoders(n_layers: int, width: int) -> Replacement:
  """Random transcoders of all layers."""
  tc = sae.TopK(d_in=width, d_out=width, width=LATENTS, k=ACTIVE)
  keys = jax.random.split(jax.random.key(0), n_layers)
  return Replacement({f'mlp_norm.{i}': (tc, tc.init(key)) for i, key in enumerate(keys)})


def directions(frozen: Frozen, count: int) -> Targets:
  """Random directions at the final norm, at the last position."""
  random = np.random.default_rng(0).standard_normal((count, frozen.layout.width))
  return Targets.join([probe(frozen, 'final_norm', -1, w.astype(np.float32)) for w in random])


def measure_rows(model: Any) -> dict[str, Any]:
  """All metrics of one prompt."""
  tokens = jnp.asarray(model.tokens(PROMPT))[:, :LENGTH]
  assert tokens.shape[1] == LENGTH
  arguments = model.apply, model.params, tokens
  start = time.perf_counter()
  maps = Maps.of(*arguments)
  jax.block_until_ready(maps.outputs.weight)
  seconds_of_maps = time.perf_counter() - start
  replaced = transcoders(maps.layout.n_layers, maps.layout.width)
  freeze = lambda: Frozen.of(*arguments, replaced, maps=maps).errors  # noqa: E731
  frozen = Frozen.of(*arguments, replaced, maps=maps)
  headless = jax.jit(lambda p, t: harvest.reap(model.apply, sites='final_norm')(p, t)['final_norm'])
  whole = jax.jit(model.apply)
  random = directions(frozen, BATCH)
  some = np.linspace(0, len(frozen.features) - 1, BATCH).astype(int)
  calls: dict[str, Callable[[], Any]] = {
    'headless': lambda: headless(model.params, tokens),
    'pass': lambda: whole(model.params, tokens),
    'rows': lambda: attribute_rows(frozen, random, BATCH).features,
    'feature rows': lambda: attribute_rows(frozen, features(frozen, some), BATCH).features,
    'frozen': freeze,
  }
  times = timing.interleave(calls, ROUNDS, warmup=2)
  return {
    'features': len(frozen.features),
    'row_over_headless_pass': times.ratio('rows', 'headless') / BATCH,
    'feature_row_over_pass': times.ratio('feature rows', 'headless') / BATCH,
    'headless_pass_ms': 1e3 * times.median('headless'),
    'frozen_over_passes': times.ratio('frozen', 'pass'),
    'maps_over_passes': seconds_of_maps / times.median('pass'),
    **measure_graph(frozen),
  }


def measure_graph(frozen: Frozen) -> dict[str, Any]:
  """Metrics of a graph of `ROWS` rows."""
  targets = logits(frozen)
  graph = attribute(frozen, targets, ROWS, batch=BATCH)

  def rows_alone() -> Any:
    rows = attribute_rows(frozen, targets, BATCH)
    for start in range(0, len(graph.explained), 4 * BATCH):  # as `attribute` ranks them
      chosen = graph.explained[start : start + 4 * BATCH]
      chosen = chosen[np.argsort(frozen.features.layer[chosen], kind='stable')]
      for i in range(0, len(chosen), BATCH):
        rows = attribute_rows(frozen, features(frozen, chosen[i : i + BATCH]), BATCH)
    return rows.embed

  calls = {'graph': lambda: attribute(frozen, targets, ROWS, batch=BATCH).table, 'rows': rows_alone}
  times = timing.interleave(calls, 5)
  with timing.compilations() as made:
    attribute(frozen, directions(frozen, 3), 2 * BATCH, batch=BATCH)
  return {
    'graph_over_rows': times.ratio('graph', 'rows'),
    'graph_seconds': times.median('graph'),
    'largest_row_error': graph.check(),
    'rows_recompiles': made.count,
    **graph.scores(),
  }


def measure_dfa(model: Any) -> dict[str, float]:
  """Cost of direct feature attribution at a layer in the second half of the model."""
  layer = 2 * model.config.n_layers // 3
  tokens = jax.random.randint(jax.random.key(0), (TEXTS, TOKENS), 0, model.config.n_vocab)
  names = {name: f'{name}.{layer}' for name in ('z', 'v', 'attn_probs')}
  heads = jax.jit(harvest.reap(model.apply, sites=names['z']))
  parts = jax.jit(harvest.reap(model.apply, sites=[*names.values()]))
  width = int(np.prod(heads(model.params, tokens)[names['z']].shape[-2:]))
  dictionary = sae.TopK(d_in=width, width=LATENTS, k=ACTIVE)
  params, chosen = dictionary.init(jax.random.key(0)), range(EXPLAINED)

  def explain() -> Any:
    acts = parts(model.params, tokens)
    z, v, probs = (acts[name] for name in names.values())
    found = dfa(dictionary, params, chosen, z=z, v=v, probs=probs)
    return found.by_head, found.by_source(-1)

  calls = {'forward': lambda: heads(model.params, tokens), 'dfa': explain}
  times = timing.interleave(calls, ROUNDS, warmup=2)
  return {'dfa_over_forward': times.ratio('dfa', 'forward')}


def random_graph(n_features: int = 8000, L: int = 18, T: int = 16) -> Graph:
  """A graph with a row for every feature, whose edges go up."""
  random = np.random.default_rng(0)
  columns, n = Columns(n_features, L, T), 10
  layer = np.sort(random.integers(0, L, n_features)).astype(np.int32)
  level = np.concatenate([np.full(n, L), layer])
  table = random.standard_cauchy((n + n_features, len(columns))).astype(np.float32)
  for start in range(0, len(table), 512):
    table[start : start + 512, :n_features] *= layer < level[start : start + 512, None]
  table /= np.abs(table).sum(1, keepdims=True)
  values = table.sum(1)
  targets = Targets(
    np.full(n, 2 * L, np.int32), np.full(n, T - 1, np.int32), np.zeros((n, 8), np.float32),
    np.zeros(n, np.float32), values[:n], np.full(n, 0.1, np.float32), ('',) * n, (-1,) * n,
  )  # fmt: skip
  every = np.arange(n_features)
  places = layer, random.integers(0, T, n_features), every
  return Graph(columns, targets, every, table, values, *places, values[n:], np.zeros(T, int))


def measure_pruning() -> dict[str, float]:
  """Seconds to prune a large graph."""
  graph = random_graph()
  seconds = [timing.time_once(lambda: prune(graph).weight) for _ in range(3)]
  influences = [timing.time_once(graph.influence) for _ in range(3)]
  small = prune(graph)
  return {
    'prune_8000_nodes_s': min(seconds),
    'influence_8000_nodes_s': min(influences),
    'pruned_nodes': len(small.nodes),
    'pruned_edges': len(small.source),
  }


def main(_):
  model = mechjax.load(_MODEL.value)
  metrics = measure_rows(model) | measure_dfa(model)
  del model
  metrics |= measure_pruning()
  metrics['load'] = os.getloadavg()[0]
  return timing.report(f'circuits {_MODEL.value}', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
