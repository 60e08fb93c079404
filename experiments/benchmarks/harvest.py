"""Cost of harvest: when it is not used, when it stages, and when it reads one layer of a scan.

    python -m experiments.benchmarks.harvest        about one minute on two cores

Expected: hlo_identical true; dispatch_ratio <= 1.05; trace_ratio <= 1.6; read_excess_activations <= 0.1;
read_runtime_ratio <= 1.05; relayer_recompiles 0.

  hlo_identical              whether optimised HLO of forward, grad, vmap and scan is the same with tags and without,
                             outside a harvest
  dispatch_ratio             seconds of a jitted call with tags over one without
  trace_ratio                staging a reap of a 36-layer unrolled model over make_jaxpr of the untagged model
  read_excess_activations    compiled temp + output bytes of reading one layer of a 36-layer scan, minus those of
                             the plain scan and the requested bytes, in units of one activation
  read_runtime_ratio         seconds of that read over the plain scan
  relayer_recompiles         compilations when other layers are requested afterwards
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import app

from experiments.benchmarks import timing
from mechjax import harvest, sites

LAYERS, BATCH, WIDTH = 36, 256, 512
TARGETS = {
  'hlo_identical': 'true',
  'dispatch_ratio': '<= 1.05',
  'trace_ratio': '<= 1.6',
  'read_excess_activations': '<= 0.1',
  'read_runtime_ratio': '<= 1.05',
  'relayer_recompiles': '0',
}


def identity(value, name):
  """Stands in for `sow` in the model without tags."""
  del name
  return value


def tag(value, name):
  return harvest.sow(value, name=name)


def norm(x):
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rotary(x):
  """Rotates the pairs of x [T, N, H] by position."""
  half = x.shape[-1] // 2
  angle = jnp.arange(x.shape[0])[:, None] / 1e4 ** (jnp.arange(half) / half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def block(sow, w, x):
  """A transformer layer with every canonical site; x [T, D], heads of width 64 (or D)."""
  x = sow(x, name='resid_pre')
  h = sow(norm(x), name='attn_norm')
  heads = lambda name: (h @ w[name]).reshape(len(x), -1, min(64, x.shape[-1]))  # noqa: E731
  q, k = sow(rotary(heads('q')), name='q'), sow(rotary(heads('k')), name='k')
  v = sow(heads('v'), name='v')
  scores = jnp.einsum('tnh,snh->nts', q, k) / q.shape[-1] ** 0.5
  causal = jnp.tril(jnp.ones((len(x), len(x)), bool))
  scores = sow(jnp.where(causal, scores, -1e30), name='attn_scores')
  probs = sow(jax.nn.softmax(scores), name='attn_probs')
  z = sow(jnp.einsum('nts,snh->tnh', probs, v), name='z')
  out = sow(z.reshape(x.shape) @ w['o'], name='attn_out')
  x = sow(x + out, name='resid_mid')
  pre = sow(sow(norm(x), name='mlp_norm') @ w['gate'], name='mlp_pre')
  post = sow(jax.nn.silu(pre) * (x @ w['up']), name='mlp_post')
  return sow(x + sow(post @ w['down'], name='mlp_out'), name='resid_post')


def scan_layers(sow):
  return lambda w, x: jax.lax.scan(lambda x, w: (block(sow, w, x), None), x, w)[0]


def unroll_layers(sow):
  def f(w, x):
    for i in range(LAYERS):
      with sites.layer(i):
        x = block(sow, jax.tree.map(lambda a, i=i: a[i], w), x)
    return x

  return f


def weights(width):
  names = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
  keys = jax.random.split(jax.random.key(0), len(names))
  return {n: jax.random.normal(k, (LAYERS, width, width)) * 0.02 for n, k in zip(names, keys)}


def hlo_identical(w, x):
  """Whether the compiled programs are the same with tags and without."""
  text = lambda f: timing.optimised_hlo(f, w, x)  # noqa: E731
  forms = {
    'forward': lambda f: lambda w, x: f(w, x),
    'grad': lambda f: jax.grad(lambda w, x: f(w, x).sum()),
    'vmap': lambda f: lambda w, x: jax.vmap(f, in_axes=(None, 0))(w, x[None]),
  }
  return all(
    text(form(model(tag))) == text(form(model(identity)))
    for form in forms.values()
    for model in (scan_layers, unroll_layers)
  )


def dispatch(rounds=30, calls=2000):
  """Ratio of the time of a tiny jitted call with tags to that of one without, measured alternately."""
  x = jnp.ones(4)
  fs = {
    n: jax.jit(lambda x, s=s: s(x + 1, name='a')) for n, s in (('tags', tag), ('plain', identity))
  }

  def many(f):
    def run():
      for _ in range(calls):
        y = f(x)
      return y

    return run

  return timing.interleave({n: many(f) for n, f in fs.items()}, rounds).ratio('tags', 'plain')


def staging(w, x, rounds=7):
  """Ratio of the times of staging; each call stages a new function, so that nothing is cached."""

  def fresh(sow, wrap):
    def run():
      f = unroll_layers(sow)
      jax.make_jaxpr(wrap(lambda w, x: f(w, x)))(w, x)

    return run

  times = timing.interleave(
    {
      'plain': fresh(identity, lambda f: f),
      'reap': fresh(tag, lambda f: harvest.call_and_reap(f, sites='mlp_out.{3,7}')),
    },
    rounds,
  )
  return times.ratio('reap', 'plain')


def reading(w, x):
  """Bytes and seconds of reading one layer of a scan, and number of compilations for other layers."""
  model = scan_layers(tag)

  def read(w, x, layers):
    return harvest.call_and_reap(model, sites={'mlp_out': layers})(w, x)

  layers = jnp.array([7])
  plain = jax.jit(scan_layers(identity)).lower(w, x).compile()
  one = jax.jit(read).lower(w, x, layers).compile()
  size = lambda c: (m := c.memory_analysis()).temp_size_in_bytes + m.output_size_in_bytes  # noqa: E731
  excess = (size(one) - size(plain) - x.nbytes) / x.nbytes
  times = timing.interleave({'plain': lambda: plain(w, x), 'read': lambda: one(w, x, layers)}, 15)
  return excess, times.ratio('read', 'plain'), relayer_recompiles(model, w, x)


def relayer_recompiles(model, w, x):
  """Number of compilations when a pattern selects other layers, outside any jit."""
  jax.block_until_ready(harvest.reap(model, sites='mlp_out.{1,4}')(w, x))
  with timing.compilations() as seen:
    jax.block_until_ready(harvest.reap(model, sites='mlp_out.{0,5}')(w, x))
  return seen.count


def main(argv):
  del argv
  w, x = weights(WIDTH), jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
  small_w, small_x = weights(16), jnp.ones((4, 16))
  excess, runtime, recompiles = reading(w, x)
  metrics = {
    'hlo_identical': hlo_identical(small_w, small_x),
    'dispatch_ratio': dispatch(),
    'trace_ratio': staging(small_w, small_x),
    'read_excess_activations': excess,
    'read_runtime_ratio': runtime,
    'relayer_recompiles': recompiles,
  }
  timing.report('harvest', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
