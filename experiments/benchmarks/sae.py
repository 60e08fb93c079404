"""Cost of a training step of a dictionary, compared with the matrix products that it cannot avoid.

    python -m experiments.benchmarks.sae        about five minutes on two cores, 3 GB

Expected: relu_*, jumprelu_* >= 0.85; gated_* >= 0.80; topk_speedup_over_dense_* >= 2; pipeline_wait <= 0.05;
forward_to_layer_ratio <= 0.55; sharded_equal true.

d 768 -> 6144, float32, batches of 2048 and 4096 tokens (the * of a name). The whole step is timed: loss, gradients,
optimiser, unit rows, counters, metrics. It cannot avoid these products of B x D x M, 2 BDM operations each:

    relu, jumprelu, dense topk   encode, decode, and the gradients of f, W_dec and W_enc              10 BDM
    gated                        encode once, decode f and ReLU(pi), the gradients of f and ReLU(pi),
                                 W_dec once (it is frozen for ReLU(pi)), W_enc once                   14 BDM

The rate is that of two bare products that are measured in the same round, x @ W_enc and f @ W_dec.

  relu_*, jumprelu_*, gated_*      seconds of those products at the rate, over seconds of the step
  topk_speedup_over_dense_*        seconds of the step of TopK with k = 32 computed densely, over sparsely
  topk_speedup_over_10BDM_*        seconds of 10 BDM at the rate, the products of a dense step and nothing else, over
                                   seconds of the sparse step
  topk_speedup_over_12BDM_*        the same with the gradient of the input, as other authors count
  *_of_minima                      the same for the fastest step and the fastest products, for a machine in use
  gigaflops_*                      the rate
  pipeline_wait                    share of the time in which a step waits for its batch, which comes from disk
  forward_to_layer_ratio           reading resid_post.15 of SmolLM2's 30 layers over a forward pass, 8 x 128 tokens
  sharded_equal                    whether 8 devices (2 x 4, 4 x 2, 8 x 1) give the losses of one, every architecture
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest, precision
from mechjax.sae import BatchTopK, Gated, JumpReLU, ReLU, TopK, store
from mechjax.sae.training import Ensemble, Optimisation, Trainer, feed

D, M, BATCHES, ROUNDS = 768, 6144, (2048, 4096), 9
SHAPE: dict[str, Any] = {'d_in': D, 'width': M}
SAES = {
  'relu': ReLU(**SHAPE, sparsity=1e-2),
  'jumprelu': JumpReLU(**SHAPE, sparsity=1e-3),
  'gated': Gated(**SHAPE, sparsity=1e-2),
  'topk': TopK(**SHAPE, k=32),
  'topk_dense': TopK(**SHAPE, k=32, sparse=False),
}
TARGETS = {
  **{f'{name}_{b}': '>= 0.85' for b in BATCHES for name in ('relu', 'jumprelu')},
  **{f'gated_{b}': '>= 0.80' for b in BATCHES},
  **{f'topk_speedup_over_dense_{b}': '>= 2' for b in BATCHES},
  'pipeline_wait': '<= 0.05',
  'forward_to_layer_ratio': '<= 0.55',
  'sharded_equal': 'True',
}
CHECK_SHARDS = 'check_shards'


def stepping(sae, x) -> Callable:
  """A call that takes the next step of a training."""
  trainer = Trainer({'a': Ensemble(sae=sae, reads='x')}, Optimisation(steps=10_000))
  state = trainer.init()

  def step():
    nonlocal state
    state, metrics = trainer.step(state, {'x': x})
    return state, metrics

  return step


def bare_products(batch) -> Callable:
  """A call that computes an encoder's and a decoder's product, 4 BDM operations, one after the other."""
  of_x, of_weights, of_f = jax.random.split(jax.random.key(1), 3)
  x, f = jax.random.normal(of_x, (batch, D)), jax.random.normal(of_f, (batch, M))
  W_enc = jax.random.normal(of_weights, (D, M))
  W_dec = jnp.array(W_enc.T)
  product = jax.jit(precision.matmul)
  return lambda: (jax.block_until_ready(product(x, W_enc)), product(f, W_dec))


def steps(batch):
  """Shares and speed-ups at one size of batch."""
  x = jax.random.normal(jax.random.key(0), (batch, D)) / np.sqrt(D)
  calls = {name: stepping(sae, x) for name, sae in SAES.items()} | {'bare': bare_products(batch)}
  seconds = timing.interleave(calls, rounds=ROUNDS, warmup=2).seconds

  def over(numerator, denominator, factor=1.0):
    """Median ratio within rounds, and the ratio of the minima."""
    one, other = seconds[numerator], seconds[denominator]
    return {
      '': factor * statistics.median(a / b for a, b in zip(one, other)),
      '_of_minima': factor * min(one) / min(other),
    }

  bare = 4 * batch * D * M
  metrics = {
    name: over('bare', name, SAES[name].operations_per_token * batch / bare)
    for name in ('relu', 'jumprelu', 'gated')
  }
  metrics['topk_speedup_over_dense'] = over('topk_dense', 'topk')
  metrics['topk_speedup_over_10BDM'] = over('bare', 'topk', 10 / 4)
  metrics['topk_speedup_over_12BDM'] = over('bare', 'topk', 12 / 4)
  rate = {f'gigaflops_{batch}': 1e-9 * bare / statistics.median(seconds['bare'])}
  named = {f'{n}_{batch}{suffix}': v for n, both in metrics.items() for suffix, v in both.items()}
  return rate | named


def forward_to_layer():
  """Cost of a pass that ends at the layer that is read, over that of a whole pass."""
  model = mechjax.load('smollm2-135m')
  tokens = jax.random.randint(jax.random.key(0), (8, 128), 0, model.n_vocab)
  site = 'resid_post.15'
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  whole = jax.jit(model.apply)
  calls = {'read': lambda: read(model.params, tokens), 'whole': lambda: whole(model.params, tokens)}
  return {'forward_to_layer_ratio': timing.interleave(calls, rounds=ROUNDS).ratio('read', 'whole')}


def pipeline():
  """Share of the time in which a ReLU dictionary waits for its batches, which are read from disk and shuffled."""
  batch, n_vocab, shard = BATCHES[0], 4096, 8192
  rng = np.random.default_rng(0)
  table = rng.standard_normal((n_vocab, D)).astype(np.float32) / np.sqrt(D)
  tokens = rng.integers(0, n_vocab, (16 * shard // 128, 128), np.int32)
  forward = lambda table, tokens: harvest.sow(table[tokens], name='x')  # noqa: E731
  contexts = store.Contexts(tokens, np.arange(len(tokens)), (), 'made up')
  harvester = store.Harvester(forward, jnp.asarray(table), ['x'], contexts)
  trainer = Trainer({'a': Ensemble(sae=SAES['relu'], reads='x')}, Optimisation(steps=10_000))
  state = trainer.init()
  with tempfile.TemporaryDirectory() as directory:
    store.write(directory, harvester, store.plan(harvester, shard_rows=shard, model='made up'))
    source = store.Stored.open(directory, shards_per_bucket=2)
    scales = store.measure(source.bucket(0))
    kept = {'batch': batch, 'streams': 1, 'seed': 0, 'position': 0}
    with feed(source, scales, trainer.batch_sharding, **kept) as batches:
      for n, (_, rows) in zip(range(28), batches):
        if n == 4:  # the steps before this one include compilation
          waited, began = batches.waited, time.perf_counter()
        state, _ = jax.block_until_ready(trainer.step(state, rows))
      return {'pipeline_wait': (batches.waited - waited) / (time.perf_counter() - began)}


def compare_meshes():
  """Whether a process with eight devices finds that meshes give the losses of one device."""
  flags = '--xla_force_host_platform_device_count=8'
  command = [sys.executable, '-m', 'experiments.benchmarks.sae', CHECK_SHARDS]
  done = subprocess.run(command, env=os.environ | {'XLA_FLAGS': flags}, check=False)
  return {'sharded_equal': done.returncode == 0}


def check_shards():
  """Raises if a mesh gives other losses than one device: 5 steps of every architecture, 64 -> 256."""
  batch = 128
  shape: dict[str, Any] = {'d_in': 64, 'width': 256}
  saes = [
    ReLU(**shape, sparsity=0.1),
    Gated(**shape, sparsity=0.1),
    JumpReLU(**shape, sparsity=1e-3, bandwidth=0.1),
    TopK(**shape, k=8),
    BatchTopK(**shape, k=8),
  ]
  ensembles = {type(sae).__name__: Ensemble(sae=sae, reads='x', seeds=(0, 1)) for sae in saes}
  data = jax.random.normal(jax.random.key(0), (5, batch, 64)) / 8

  def losses(mesh):
    trainer = Trainer(
      ensembles, Optimisation(steps=100, warm_up_steps=0, sparsity_warm_up_steps=2, eps=1e-4), mesh
    )
    state, seen = trainer.init(), []
    for x in data:
      state, metrics = trainer.step(state, {'x': jax.device_put(x, trainer.batch_sharding)})
      seen.append({name: own['loss'] for name, own in metrics.ensembles.items()})
    return jax.tree.map(np.asarray, seen)

  expected = losses(None)
  for sizes in ((2, 4), (4, 2), (8, 1)):
    mesh = jax.make_mesh(sizes, ('data', 'model'), (jax.sharding.AxisType.Auto,) * 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), losses(mesh), expected)


def main(argv):
  if CHECK_SHARDS in argv:
    return check_shards()
  metrics: dict[str, Any] = {}
  for batch in BATCHES:
    metrics |= steps(batch)
  metrics |= pipeline() | forward_to_layer() | compare_meshes()
  metrics['load'] = os.getloadavg()[0]
  return timing.report('sae', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
