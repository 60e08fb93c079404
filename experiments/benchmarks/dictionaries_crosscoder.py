"""Part of the benchmark `dictionaries`: a training step of crosscoders, over the matrix products that it cannot avoid.

Two parts of 576, 4,608 latents, batches of 2,048 tokens, float32. Encoder, decoder, and the gradients of latents, W_dec
and W_enc are five products of B x D x M with D = 1,152, 10 BDM operations; lengths of directions, ranks and the
concatenation of the parts cost extra. The rate is that of two bare products that are measured in the same round.

crosscoder_step_share       the smaller of the next two
crosscoder_relu_share       seconds of those products at the rate, over seconds of a step with the L1 penalty
crosscoder_batch_topk_share the same with BatchTopK, k = 32
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import precision
from mechjax.sae import Architecture, BatchTopK, ReLU
from mechjax.sae.training import Ensemble, Optimisation, Trainer

PARTS, M, B, ROUNDS = (576, 576), 4608, 2048, 7
SHAPE: dict[str, Any] = {'d_in': sum(PARTS), 'width': M, 'parts': PARTS}
SAES = {'relu': ReLU(**SHAPE, sparsity=1e-2), 'batch_topk': BatchTopK(**SHAPE, k=32)}
TARGETS = {'crosscoder_step_share': '>= 0.80'}


def stepping(sae: Architecture) -> Callable:
  """A call that takes the next step of a training."""
  names = [f'part_{n}' for n in range(len(PARTS))]
  keys = jax.random.split(jax.random.key(0), len(PARTS))
  batch = {n: jax.random.normal(k, (B, d)) / np.sqrt(d) for n, k, d in zip(names, keys, PARTS)}
  ensemble = Ensemble(sae=sae, reads=tuple(names))
  trainer = Trainer({'a': ensemble}, Optimisation(steps=10_000))
  state = trainer.init()

  def step() -> Any:
    nonlocal state
    state, metrics = trainer.step(state, batch)
    return state, metrics

  return step


def bare_products() -> Callable:
  """A call that computes the products of an encoder and of a decoder, 4 BDM operations, one after the other."""
  D = sum(PARTS)
  of_x, of_weights, of_f = jax.random.split(jax.random.key(1), 3)
  x, f = jax.random.normal(of_x, (B, D)), jax.random.normal(of_f, (B, M))
  W_enc = jax.random.normal(of_weights, (D, M))
  W_dec = jnp.array(W_enc.T)
  product = jax.jit(precision.matmul)
  return lambda: (jax.block_until_ready(product(x, W_enc)), product(f, W_dec))


def crosscoder_steps() -> dict[str, Any]:
  """All metrics of this file; about a minute on two cores."""
  calls = {name: stepping(sae) for name, sae in SAES.items()} | {'bare': bare_products()}
  seconds = timing.interleave(calls, rounds=ROUNDS, warmup=2).seconds
  bare = 4 * B * sum(PARTS) * M
  shares = {
    name: sae.operations_per_token
    * B
    / bare
    * statistics.median(b / s for b, s in zip(seconds['bare'], seconds[name]))
    for name, sae in SAES.items()
  }
  return {
    'crosscoder_step_share': min(shares.values()),
    **{f'crosscoder_{name}_share': share for name, share in shares.items()},
  }
