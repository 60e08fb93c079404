"""Part of the benchmark `facts`: the cost of a sweep of effective models, 32 prompts of 8 to 12 tokens.

effective_sweep_recompiles   number of compilations by a sweep over kept sets, positions and ablated paths, after the
                             first model of each kind (with and without a path)
effective_over_plain         time of one set, making it included, over a plain pass; both return the logits at the last
                             column
effective_read_over_plain    the same for a read of the stream after every layer
path_over_plain              time of one ablated path, which takes three passes, over a plain pass

Weights are random, in the shape of SmolLM2-135M unless a model is given: no time depends on their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models import decoder, families, ours
from mechjax.patching import EffectiveModel, Kept, NodeSet, ablate, components_of, measure_means
from mechjax.patching.cut_paths import Path

PROMPTS, TOKENS, ROUNDS = 32, 12, 9
TARGETS = {'effective_sweep_recompiles': '0'}

Choice = tuple[str, int, Sequence[Path]]
"""Ablated sites, position from the end, and ablated paths."""


def effective_sweeps(model: Any = None) -> dict[str, float]:
  """All metrics of this file.

  Args:
    model: a model with `apply`, `params`, `n_layers` and `n_vocab`; None for a random one.
  """
  model = _random_model() if model is None else model
  random = np.random.default_rng(0)
  tokens = random.integers(100, model.n_vocab, (PROMPTS, TOKENS)).astype(np.int32)
  mask = np.arange(TOKENS) < random.integers(8, TOKENS + 1, PROMPTS)[:, None]
  parts = components_of(harvest.sites_of(model.apply, model.params, tokens))
  means = measure_means(model.apply, model.params, tokens, parts, mask=mask)

  def make(choice: Choice) -> EffectiveModel:
    ablated, position, paths = choice
    kept = Kept.all_but(parts, ablated)
    return ablate(model.apply, kept, means, positions=[position], paths=paths)

  run = jax.jit(lambda f, params, tokens, mask: f(params, tokens, mask=mask)[:, -1])
  inputs = model.params, tokens, mask
  read = lambda f: harvest.reap(f, sites='resid_post')(*inputs[:2], mask=mask)  # noqa: E731
  plain = jax.jit(lambda params, tokens, mask: model.apply(params, tokens, mask=mask)[:, -1])
  first, with_path, *others = _sweep(model.n_layers, parts)
  for choice in (first, with_path):
    jax.block_until_ready((run(make(choice), *inputs), read(make(choice))))
  with timing.compilations() as again:
    for choice in others:
      jax.block_until_ready((run(make(choice), *inputs), read(make(choice))))
  calls = {
    'set': lambda: run(make(first), *inputs),
    'read': lambda: read(make(first)),
    'path': lambda: run(make(with_path), *inputs),
    'plain': lambda: plain(*inputs),
  }
  times = timing.interleave(calls, rounds=ROUNDS)
  return {
    'effective_sets': len(others),
    'effective_sweep_recompiles': again.count,
    'effective_seconds': times.median('set'),
    'effective_over_plain': times.ratio('set', 'plain'),
    'effective_read_over_plain': times.ratio('read', 'plain'),
    'path_over_plain': times.ratio('path', 'plain'),
  }


def _sweep(n_layers: int, parts: NodeSet) -> Iterator[Choice]:
  """The sets of a sweep: attention from a layer on, MLPs above a layer, single MLPs, and paths between MLPs."""
  last = n_layers - 1
  path = lambda i, j: [(f'mlp_out.{i}', f'mlp_norm.{j}')]  # noqa: E731
  yield f'z.{{2..{last}}}', -1, ()
  yield f'z.{{2..{last}}}', -1, path(0, 1)
  for k in (0, 1, last):
    yield f'z.{{{k}..{last}}}', -1, ()
    yield f'z.{{2..{last}}}, mlp_out.{{{k}..{last}}}', -2, ()
    yield f'mlp_out.{k}', -3, ()
  for i, j in ((0, 2), (1, 2), (1, last)):
    yield f'z.{{2..{last}}}', -2, path(i, j)


def _random_model() -> Any:
  config = families.preset('smollm2-135m')
  return ours.forward(decoder.init(jax.random.key(0), config), config)
