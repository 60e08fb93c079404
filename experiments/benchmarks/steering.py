"""Cost of sparse codes without an encoder, of steered generations, and of a search for a direction.

    python -m experiments.benchmarks.steering        about fifteen minutes on two cores, 2 GB

Pursuits: d 768, 6144 latents, float32, 32 steps, non-negative.

  pursuit_over_encoder_products          seconds of a gradient pursuit, over those of 32 products x @ W_enc + b_enc
  pursuit_speedup_over_three_products    seconds of the textbook form in JAX, whose weights [B, M] make three dense
                                         products per step, over those of the gradient pursuit
  sweep_over_largest                     seconds of one run for k = 4, 8, 16, 32, 64, 128, over those for k = 128 alone
  nn_omp_over_gp                         seconds of non-negative orthogonal pursuit, over those of gradient pursuit
  mp_over_gp                             the same of matching pursuit
  pursuit_temp_ratio_4096_over_1024      temporary bytes of the compiled pursuit of 4,096 tokens, over those of 1,024
                                         tokens and the result
  pursuit_temp_megabytes                 these temporary bytes for 4,096 tokens
  *_of_minima                            ratios of the fastest calls, for a machine in use

Generations: SmolLM2-135M, one text, 64 tokens, a vector added at resid_pre.12 from the last token of the prompt on.

  steered_step_over_plain                seconds of a steered generation over those of a plain one
  coefficients_recompiles                number of compilations of a sweep over 16 coefficients and vectors, after one

Directions: see `steering_directions`.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from jax import lax

import mechjax
from experiments.benchmarks import steering_directions, timing
from mechjax import precision
from mechjax.sae import Pursuit
from mechjax.sae.ops.unit_rows import unit_rows
from mechjax.steering import Add, generated, last

D, M, K, BATCH, ROUNDS = 768, 6144, 32, 1024, 5
LEVELS, SWEEP_BATCH = (4, 8, 16, 32, 64, 128), 512
TARGETS = {
  'pursuit_over_encoder_products': '<= 1.35',
  'pursuit_speedup_over_three_products': '>= 2.2',
  'sweep_over_largest': '<= 1.1',
  'nn_omp_over_gp': '<= 2',
  'pursuit_temp_ratio_4096_over_1024': '<= 1.2',
  'steered_step_over_plain': '<= 1.05',
  'coefficients_recompiles': '0',
  **steering_directions.TARGETS,
}


def case(batch: int) -> tuple[jax.Array, jax.Array]:
  """A dictionary with rows of length one, and activations that it can explain in part."""
  of_rows, of_latents, of_x = jax.random.split(jax.random.key(0), 3)
  W = unit_rows(jax.random.normal(of_rows, (M, D)))
  f = jax.random.exponential(of_latents, (batch, M))
  f = jnp.where(f > jnp.sort(f, 1)[:, -40][:, None], f, 0)
  return W, f @ W + 0.1 * jax.random.normal(of_x, (batch, D))


@functools.partial(jax.jit, static_argnames='k')
def run_three_products(W_MxD: jax.Array, x_BxD: jax.Array, k: int) -> jax.Array:
  """Gradient pursuit with dense weights, as in the textbook; [B, M]."""

  def step(_: jax.Array, w_BxM: jax.Array) -> jax.Array:
    r_BxD = x_BxD - precision.matmul(w_BxM, W_MxD)
    z_BxM = precision.matmul(r_BxD, W_MxD.T)
    chosen_BxM = jax.nn.one_hot(jnp.argmax(z_BxM, 1), len(W_MxD), dtype=bool)
    g_BxM = jnp.where((w_BxM != 0) | chosen_BxM, z_BxM, 0)
    c_BxD = precision.matmul(g_BxM, W_MxD)
    length_B = jnp.sum(c_BxD * c_BxD, 1)
    step_B = jnp.sum(c_BxD * r_BxD, 1) / jnp.where(length_B > 0, length_B, 1)
    return jnp.maximum(w_BxM + step_B[:, None] * g_BxM, 0)

  return lax.fori_loop(0, k, step, jnp.zeros((len(x_BxD), len(W_MxD))))


def compare_seconds(calls: dict[str, Callable], pairs: dict[str, tuple[str, str]]) -> dict:
  """Ratios of calls, by name: the median within rounds, and that of the minima."""
  seconds = timing.interleave(calls, rounds=ROUNDS).seconds
  metrics = {}
  for name, (one, other) in pairs.items():
    a, b = seconds[one], seconds[other]
    metrics[name] = statistics.median(x / y for x, y in zip(a, b))
    metrics[f'{name}_of_minima'] = min(a) / min(b)
  return metrics


def pursuits() -> dict[str, Any]:
  """Pursuits of 32 steps, their 32 encoder products, and the form with three products per step."""
  W, x = case(BATCH)
  W_enc, b_enc = jnp.array(W.T), jnp.ones(M)
  encode = jax.jit(lambda x, W_enc: precision.matmul(x, W_enc) + b_enc)
  calls = {
    'products': lambda: [jax.block_until_ready(encode(x, W_enc)) for _ in range(K)][-1],
    'gradient': lambda: Pursuit(K).code(W, x),
    'matching': lambda: Pursuit(K, 'matching').code(W, x),
    'orthogonal': lambda: Pursuit(K, 'orthogonal').code(W, x),
    'three': lambda: run_three_products(W, x, K),
  }
  return compare_seconds(
    calls,
    {
      'pursuit_over_encoder_products': ('gradient', 'products'),
      'pursuit_speedup_over_three_products': ('three', 'gradient'),
      'nn_omp_over_gp': ('orthogonal', 'gradient'),
      'mp_over_gp': ('matching', 'gradient'),
    },
  )


def sweeps() -> dict[str, Any]:
  """One run for six L0, and a run for the largest alone."""
  W, x = case(SWEEP_BATCH)
  pursuit = Pursuit(LEVELS[-1])
  calls = {'sweep': lambda: pursuit.sweep(W, x, LEVELS), 'largest': lambda: pursuit.code(W, x)}
  return compare_seconds(calls, {'sweep_over_largest': ('sweep', 'largest')})


def memory() -> dict[str, Any]:
  """Temporary bytes of a compiled pursuit, which should not grow with the number of tokens."""
  found = {}
  for batch in (1024, 4096):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((M, D), (batch, D))]
    found[batch] = jax.jit(Pursuit(K).code).lower(*shapes).compile().memory_analysis()
  larger, smaller = found[4096], found[1024]
  assert larger is not None
  assert smaller is not None
  allowed = smaller.temp_size_in_bytes + larger.output_size_in_bytes
  return {
    'pursuit_temp_ratio_4096_over_1024': larger.temp_size_in_bytes / allowed,
    'pursuit_temp_megabytes': larger.temp_size_in_bytes / 2**20,
  }


def generations(model: Any) -> dict[str, Any]:
  """A steered generation over a plain one, and what a sweep over coefficients and vectors compiles."""
  vectors = jax.random.normal(jax.random.key(0), (16, model.d_model))

  def generate(i: int | None) -> jax.Array:
    edit = None if i is None else Add('resid_pre.12', vectors[i], where=last(1) | generated)
    plants = None if edit is None else edit.plants(0.1 * (i or 1))
    return model.generate('Once upon a time', 64, plants=plants, stop=()).tokens

  generate(0)
  with timing.compilations() as again:
    for i in range(1, len(vectors)):
      generate(i)
  calls = {'steered': lambda: generate(1), 'plain': lambda: generate(None)}
  times = timing.interleave(calls, rounds=7)
  return {
    'steered_step_over_plain': times.ratio('steered', 'plain'),
    'coefficients_recompiles': again.count,
  }


def main(_):
  model = mechjax.load('smollm2-135m')
  metrics = memory() | pursuits() | sweeps() | generations(model)
  metrics |= steering_directions.measure(model)
  metrics['load'] = os.getloadavg()[0]
  return timing.report('steering', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
