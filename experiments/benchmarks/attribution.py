"""Cost of attribution and of exact sweeps, on real weights: SmolLM2-135M, one prompt pair of 16 tokens.

    python -m experiments.benchmarks.attribution        about five minutes on two cores

Expected: atp_over_2f1b <= 1.2; atp_star_qk_over_2f1b <= 1.6; graddrop_over_L_backwards <= 0.5;
sweep_forwards_per_patch <= 0.6; sweep_peak_within_budget true; recompiles_in_sweep 1.

  atp_over_2f1b              AtP for every head (q, k, v, z) and MLP at every position, over two forwards and a backward
                             (to the embeddings) of the same jitted model
  atp_neurons_over_2f1b      the same for each neuron of every layer at every position
  atp_star_qk_over_2f1b      with the QK fix
  graddrop_over_L_backwards  AtP with GradDrop of the same nodes, everything included, over L times one backward
  graddrop_first_call_s      seconds of its first call, compilation included
  sweep_forwards_per_patch   an exact patch of one head at one position, started at the head's own layer, over one
                             prompt in a batch of plain forwards of the same size that computes the same logit
                             difference; 16 patches in each of the 30 layers
  sweep_without_prefix       the same, with every pass started at the first layer
  sweep_peak_bytes           memory that a sweep of 480 patches adds to the process under a budget of 32 MiB
  sweep_planned_bytes        memory that the compiler reports for it, kept values included
  recompiles_in_sweep        number of compilations of the patched pass in a sweep over all layers and sites
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest
from mechjax.models import decoder
from mechjax.patching import (
  ActivationPatching,
  AtPStar,
  Attribution,
  Pairs,
  logit_difference,
  nodes_of,
)

CLEAN = 'When the two of them went to the store, Mary and John gave a'
NOISE = 'When the two of them went to the store, Anna and John gave a'
PATCHES, BUDGET = 16, 2**25
TARGETS = {
  'atp_over_2f1b': '<= 1.2',
  'atp_star_qk_over_2f1b': '<= 1.6',
  'graddrop_over_L_backwards': '<= 0.5',
  'sweep_forwards_per_patch': '<= 0.6',
  'sweep_peak_within_budget': 'true',
  'recompiles_in_sweep': '1',
}


def question(model):
  """The prompt pair, its metric, and the sites of the model."""
  clean, noise = (model.tokenizer.encode(text) for text in (CLEAN, NOISE))
  pairs = Pairs.of([clean], [noise])
  answers = [model.token(' book')], [model.token(' kiss')]
  infos = harvest.sites_of(model.apply, model.params, jnp.asarray(pairs.clean))
  return pairs, logit_difference(pairs, *answers), infos


def plain_passes(model, pairs, metric):
  """Two forwards and one backward, and one forward, jitted."""

  def loss(x, params):
    x = decoder.blocks(params, x, model.config)
    return metric(decoder.unembed(params, x, model.config)).sum()

  @jax.jit
  def forward_and_backward(params, clean):
    return jax.value_and_grad(loss)(decoder.embed(params, clean, model.config), params)

  @jax.jit
  def forward(params, tokens):
    return metric(model.apply(params, tokens))

  def both():
    return forward(model.params, pairs.noise), forward_and_backward(model.params, pairs.clean)

  return both, lambda: forward(model.params, pairs.clean)


def attribution(model, pairs, metric, infos):
  """Ratios of AtP, with and without the QK fix, and of GradDrop."""
  nodes = nodes_of(infos, 'q, k, v, z, mlp_out')
  neurons = nodes_of(infos, 'mlp_post', neurons='each')
  methods = {
    'atp': Attribution(model.apply, nodes),
    'neurons': Attribution(model.apply, neurons),
    'qk': AtPStar(model.apply, nodes, graddrop=False),
    'graddrop': AtPStar(model.apply, nodes, qk_fix=False, chunk=6),
  }
  calls = {
    name: lambda m=method: m(model.params, pairs, metric).values for name, method in methods.items()
  }
  first = timing.time_once(calls['graddrop'])
  calls['2f1b'], calls['forward'] = plain_passes(model, pairs, metric)
  times = timing.interleave(calls, rounds=7)
  backward = times.median('2f1b') - 2 * times.median('forward')
  return {
    'seconds_2f1b': times.median('2f1b'),
    'seconds_forward': times.median('forward'),
    'atp_over_2f1b': times.ratio('atp', '2f1b'),
    'atp_neurons_over_2f1b': times.ratio('neurons', '2f1b'),
    'atp_star_qk_over_2f1b': times.ratio('qk', '2f1b'),
    'graddrop_over_L_backwards': times.median('graddrop') / (model.n_layers * backward),
    'graddrop_first_call_s': first,
    'nodes': len(nodes),
    'neurons': len(neurons),
  }


def sweeps(model, pairs, metric, infos):
  """Ratios of exact sweeps, over the same number of nodes in every layer."""
  heads = nodes_of(infos, 'q, k, v, z')
  random, layers = np.random.default_rng(0), heads.table[:, 1]
  some = [random.choice(np.flatnonzero(layers == i), PATCHES, False) for i in range(model.n_layers)]
  chosen = heads[np.concatenate(some)]

  @jax.jit
  def batch(params, tokens):
    logits = model.apply(params, tokens)[:, -1]
    return logits[:, metric.data[0][0]] - logits[:, metric.data[1][0]]

  tokens = np.repeat(pairs.clean, PATCHES, axis=0)

  def sweep(nodes, **options):
    exact = ActivationPatching(
      model.apply, nodes, **{'max_batch': PATCHES, 'forward_from': model.forward_from} | options
    )
    return exact, lambda: exact(model.params, pairs, metric).values

  compiled = []
  for nodes in (
    chosen[:PATCHES],
    chosen[:PATCHES],
    chosen,
  ):  # the first sweep also compiles the functions that all sweeps share
    with timing.compilations() as seen:
      sweep(nodes)[1]()
    compiled.append(seen.count)
  calls = {'prefix': sweep(chosen)[1], 'whole': sweep(chosen, forward_from=None)[1]}
  calls['plain'] = lambda: [batch(model.params, tokens) for _ in range(model.n_layers)]
  times = timing.interleave(calls, rounds=3)
  bounded, run = sweep(chosen, budget=BUDGET, max_batch=len(chosen))
  run()
  peak = timing.peak_memory(run)
  (plan,) = bounded._plans.values()
  return {
    'sweep_forwards_per_patch': times.ratio('prefix', 'plain'),
    'sweep_without_prefix': times.ratio('whole', 'plain'),
    'sweep_peak_bytes': peak,
    'sweep_budget_bytes': BUDGET,
    'sweep_peak_within_budget': peak <= BUDGET,
    'sweep_chunk': plan.chunk,
    'sweep_planned_bytes': plan.bytes,
    'recompiles_in_sweep': 1 + compiled[2] - compiled[1],
    'ms_per_patch': 1e3 * times.median('prefix') / len(chosen),
  }


def main(argv):
  del argv
  model = mechjax.load('smollm2-135m')
  pairs, metric, infos = question(model)
  metrics = attribution(model, pairs, metric, infos) | sweeps(model, pairs, metric, infos)
  timing.report('attribution', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
