"""Part of the benchmark `facts`: effects of all neurons of a layer, with the sizes of SmolLM2-135M (D 576, V 49,152).

neuron_effects_speedup          time of the usual formulation over that of ours, all neurons of the layer on the same
                                tokens. The usual one runs the ablated stream through the unembedding twice for each
                                neuron, with the scale of the norm live and frozen; it is timed on a few neurons, and
                                multiplied. Both compute the changes of loss, total and direct
neuron_effects_over_exp         time of ours over that of exp on as many numbers as there are pairs times V, in arrays
                                of 4 MiB; it is timed on a part, and multiplied
neuron_effects_peak_over_block  peak of the memory that a call of ours adds, over the bound that was asked for (100 MB)

Weights and streams are random numbers: the time does not depend on them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from mechjax import logits, precision
from mechjax.neurons import NeuronAblation, Readout

D, F, V, TOKENS, ROUNDS = 576, 1536, 49_152, 240, 3
FEW, SIZE, PART = 8, 2**20, 64
"""Neurons of the usual formulation that are timed; numbers of an array of exponentials, and arrays that are timed."""
MEMORY = 100 * 10**6
TARGETS = {
  'neuron_effects_speedup': '>= 20',
  'neuron_effects_over_exp': '<= 3',
  'neuron_effects_peak_over_block': '<= 1.2',
}


def neuron_effects() -> dict[str, Any]:
  """All metrics of this file."""
  random = np.random.default_rng(0)
  W_U, W_out, gain = draw(random, D, V) / 24, draw(random, F, D), np.ones(D, np.float32)
  x, a, ids = 4 * draw(random, TOKENS, D), draw(random, TOKENS, F), random.integers(0, V, TOKENS)
  ablate = NeuronAblation(Readout.of(gain, W_U, 1e-5), W_out, memory=MEMORY)
  usual = make_usual(jnp.asarray(W_U), jnp.asarray(W_out), jnp.asarray(x), jnp.asarray(a), ids)
  array, exp = jnp.asarray(draw(random, SIZE)), jax.jit(jnp.exp)
  check(ablate, usual, x, a, ids)

  def exponentials() -> Any:
    for _ in range(PART):
      out = exp(array)
    return out

  calls = {
    'ours': lambda: ablate(x, a, ids).total.value,
    'usual': lambda: [usual(i) for i in range(FEW)],
    'exp': exponentials,
  }
  times = timing.interleave(calls, rounds=ROUNDS)
  arrays = TOKENS * F * V / SIZE
  peak = timing.peak_memory(lambda: ablate(x, a, ids).total.value)
  return {
    'neuron_effects_ns_a_term': 1e9 * times.median('ours') / (TOKENS * F * V),
    'neuron_effects_speedup': times.ratio('usual', 'ours') * F / FEW,
    'neuron_effects_over_exp': times.ratio('ours', 'exp') / (arrays / PART),
    'neuron_effects_peak_over_block': peak / MEMORY,
  }


def draw(random: np.random.Generator, *shape: int) -> Any:
  """Normal numbers in float32."""
  return np.asarray(random.standard_normal(shape), np.float32)


def make_usual(W_U: jax.Array, W_out: jax.Array, x: jax.Array, a: jax.Array, ids: Any) -> Any:
  """The effects of one neuron by two products with the unembedding, as a jitted function of its number."""
  following = jnp.asarray(ids, jnp.int32)

  def measure_loss(x: jax.Array, scale: jax.Array) -> jax.Array:
    out = precision.matmul(x / scale, W_U)
    return logits.next_token_loss(logits.log_probs(out), following)

  scale = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)
  plain = jax.jit(measure_loss)(x, scale)

  @jax.jit
  def usual(i: int) -> jax.Array:
    changed = x + (jnp.mean(a[:, i]) - a[:, i])[:, None] * W_out[i]
    live = jnp.sqrt(jnp.mean(changed**2, axis=-1, keepdims=True) + 1e-5)
    losses = [measure_loss(changed, s) for s in (live, scale)]
    return jnp.stack([jnp.mean(jnp.abs(loss - plain)) for loss in losses])

  return usual


def check(ablate: NeuronAblation, usual: Any, x: Any, a: Any, ids: Any) -> None:
  """Asserts that both formulations give the same effects."""
  found = ablate(x, a, ids, neurons=np.arange(2))
  for i in range(2):
    total, direct = np.asarray(usual(i))
    np.testing.assert_allclose(found.total.value[i], total, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.direct.value[i], direct, rtol=1e-3, atol=1e-5)
