"""Cost of iterating over a forward pass.

  python -m experiments.benchmarks.forward

SmolLM2-135M in unmodified google-tunix code, 1x128 tokens. Every metric is a ratio of two calls measured alternately
in this process. Cost: about three minutes on two CPU cores, 3 GB of memory. Expected: a stepped pass over every
residual site takes about as long as the jitted forward, and with all 453 sites about 1.2 times as long; the first pass
compiles in half the time of the whole model; another loop body causes no compilation.

  stepped_over_jit                       a pass that yields every resid_post, over the jitted forward
  stepped_all_over_jit                   a pass that yields every site
  reap_all_over_jit                      the same values as results of one jitted program, for comparison
  first_pass_over_jit_compile            first pass minus a later one, over tracing and compiling the jitted forward
  backward_over_jit_grad                 a pass and run.backward, over jit(grad) at the same sites
  first_backward_over_jit_grad_compile   the first of these minus a later one, over compiling jit(grad)
  overhead_us_per_site                   pass of a tiny model minus one call per segment, in microseconds per site
  peak_memory_over_eager                 rise of resident memory in a stepped pass, over that of the eager forward
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest, sites

TARGETS = {
  'stepped_over_jit': '<= 1.05',
  'stepped_all_over_jit': '<= 1.3',
  'second_pass_compilations': '0',
  'distinct_segments': '<= 6',
  'first_pass_over_jit_compile': '<= 0.7',
  'backward_over_jit_grad': '<= 1.15',
  'first_backward_over_jit_grad_compile': '<= 0.6',
  'traced_hlo_identical': 'True',
  'peak_memory_over_eager': '<= 1',
}


def metric(logits: jax.Array) -> jax.Array:
  """Log-probability of one token."""
  return jax.nn.log_softmax(logits[0, -1])[42]


def finish(run: Any) -> jax.Array:
  """Runs a pass to its end."""
  for *_, value in run:
    del value
  return run.retval


def fresh(f: Callable) -> Callable:
  """A copy of a function that neither JAX nor mechjax has cached anything for."""
  return lambda *args: f(*args)


def forward_metrics(model: Any, tokens: jax.Array) -> dict[str, Any]:
  """Compares stepped passes with the jitted forward."""
  jitted = jax.jit(model.apply)
  some = mechjax.iterate(model.apply, 'resid_post')
  every = mechjax.iterate(model.apply)
  reap = harvest.call_and_reap(model.apply, sites='*')
  times = timing.interleave(
    {
      'jit': lambda: jitted(model.params, tokens),
      'some': lambda: finish(some(model.params, tokens)),
      'every': lambda: finish(every(model.params, tokens)),
      'reap': lambda: jax.tree.leaves(reap(model.params, tokens)),
    },
    rounds=15,
  )
  firsts = timing.interleave(
    {
      'compile': lambda: jax.jit(fresh(model.apply)).lower(model.params, tokens).compile() and None,
      'first': lambda: finish(
        mechjax.iterate(fresh(model.apply), 'resid_post')(model.params, tokens)
      ),
      'later': lambda: finish(some(model.params, tokens)),
    },
    rounds=5,
    warmup=0,
  )
  run = some(model.params, tokens)
  zero = jnp.zeros((1, tokens.shape[1], model.d_model))
  with timing.compilations() as seen:
    for layer, _, _ in run:
      if layer == 3:
        run.modified_value = zero
  return {
    'jit_seconds': times.median('jit'),
    'stepped_over_jit': times.ratio('some', 'jit'),
    'stepped_all_over_jit': times.ratio('every', 'jit'),
    'reap_all_over_jit': times.ratio('reap', 'jit'),
    'second_pass_compilations': seen.count,
    'segments': run.segments,
    'distinct_segments': run.distinct_segments,
    'first_pass_over_jit_compile': firsts.ratio('first', 'compile')
    - firsts.ratio('later', 'compile'),
  }


def backward_metrics(model: Any, tokens: jax.Array) -> dict[str, Any]:
  """Compares run.backward with one jitted gradient with respect to the same values."""
  forward = mechjax.iterate(model.apply, 'resid_post', keep=True)
  zeros = [jnp.zeros((1, tokens.shape[1], model.d_model))] * model.n_layers

  def at(deltas, params, tokens):
    plants = {
      f'resid_post.{i}': (lambda value, d=delta: value + d) for i, delta in enumerate(deltas)
    }
    return metric(harvest.plant(model.apply)(plants, params, tokens))

  def back(forward):
    finish(run := forward(model.params, tokens))
    return [grad for *_, grad in run.backward(metric)]

  gradient = jax.jit(jax.grad(at))
  times = timing.interleave(
    {
      'grad': lambda: gradient(zeros, model.params, tokens),
      'back': lambda: back(forward),
    },
    rounds=9,
  )
  firsts = timing.interleave(
    {
      'compile': lambda: (
        jax.jit(fresh(jax.grad(at))).lower(zeros, model.params, tokens).compile() and None
      ),
      'first': lambda: back(mechjax.iterate(fresh(model.apply), 'resid_post', keep=True)),
      'later': lambda: back(forward),
    },
    rounds=3,
    warmup=0,
  )
  expected, found = gradient(zeros, model.params, tokens), back(forward)[::-1]
  worst = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in zip(expected, found))
  return {
    'backward_over_jit_grad': times.ratio('back', 'grad'),
    'first_backward_over_jit_grad_compile': firsts.ratio('first', 'compile')
    - firsts.ratio('later', 'compile'),
    'backward_largest_relative_difference': worst,
  }


def tiny(params: list[jax.Array], x: jax.Array, edit: Callable = lambda i, v: v) -> jax.Array:
  """Eight layers that compute next to nothing."""
  for i, w in enumerate(params):
    with sites.layer(i):
      out = harvest.sow(jnp.tanh(x @ w), name='mlp_out')
      x = harvest.sow(x + edit(i, out), name='resid_post')
  return x


def tiny_metrics() -> dict[str, Any]:
  """Compares compiled edits with edits written by hand, and measures the cost of a site in Python."""
  params, x = [jnp.eye(16)] * 8, jnp.ones((4, 16))
  direction = jnp.ones(16) / 4
  edits = [
    lambda v: v.at[-1].set(0),
    lambda v: v + 3 * direction,
    lambda v: v - (v @ direction)[:, None] * direction,
  ]
  forward = mechjax.iterate(tiny, 'mlp_out')

  def same(edit: Callable) -> bool:
    def looped(params, x):
      for layer, _, value in (run := forward(params, x)):
        if layer == 5:
          run.modified_value = edit(value)
        del value
      return run.retval

    def by_hand(params, x):
      return tiny(params, x, lambda i, v: edit(v) if i == 5 else v)

    plain = timing.optimised_hlo(lambda params, x: tiny(params, x), params, x)
    loop, hand = (timing.optimised_hlo(f, params, x) for f in (looped, by_hand))
    return loop == hand != plain

  segment = jax.jit(lambda w, x: x + jnp.tanh(x @ w))

  def calls():
    y = x
    for w in [*params, params[0]]:
      y = segment(w, y)
    return y

  times = timing.interleave({'run': lambda: finish(forward(params, x)), 'calls': calls}, rounds=101)
  overhead = (times.median('run') - times.median('calls')) / len(params)
  return {'traced_hlo_identical': all(map(same, edits)), 'overhead_us_per_site': overhead * 1e6}


def memory_metrics(model: Any, tokens: jax.Array) -> dict[str, Any]:
  """Peak memory of a stepped pass and of the forward run operation by operation, both warm."""
  forward = mechjax.iterate(model.apply, 'resid_post')
  jitted = jax.jit(model.apply)
  calls = {
    'stepped': lambda: finish(forward(model.params, tokens)),
    'eager': lambda: model.apply(model.params, tokens),
    'jit': lambda: jitted(model.params, tokens),
  }
  for call in calls.values():
    timing.time_once(call)
  peaks = {n: np.median([timing.peak_memory(c) for _ in range(5)]) for n, c in calls.items()}
  return {
    'peak_memory_over_eager': float(peaks['stepped'] / peaks['eager']),
    **{f'peak_memory_{name}_mb': round(float(peak) / 1e6, 1) for name, peak in peaks.items()},
  }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  model = mechjax.load('smollm2-135m', code='tunix')
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 49000, (1, 128)))
  metrics = {
    **forward_metrics(model, tokens),
    **backward_metrics(model, tokens),
    **tiny_metrics(),
    **memory_metrics(model, tokens),
  }
  timing.report('Iterating over a forward pass of SmolLM2-135M, 1x128 tokens', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
