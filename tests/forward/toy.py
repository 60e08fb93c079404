"""Small residual networks, written in the styles of upstream code, and edits of their values."""

import jax
import jax.numpy as jnp

from mechjax import sites
from mechjax.harvest import sow

L, D, H = 5, 4, 6


def parameters(layers=L, seed=0):
  up, down = jax.random.split(jax.random.key(seed))
  return {
    'up': jax.random.normal(up, (layers, D, H)) / 2,
    'down': jax.random.normal(down, (layers, H, D)) / 2,
  }


def layer_list(params):
  """Parameters as Python-loop models have them: one dict per layer."""
  return [{k: v[i] for k, v in params.items()} for i in range(len(params['up']))]


X = jnp.array([[0.3, -1.2, 0.7, 2.0], [1.1, 0.4, -0.6, 0.2]])


def block(layer, x):
  hidden = sow(jnp.tanh(x @ layer['up']), name='mlp_post')
  out = sow(hidden @ layer['down'], name='mlp_out')
  return sow(x + out, name='resid_post')


def head(x):
  return sow(x * jnp.float32(2) + jnp.float32(1), name='logits')


def unrolled(layers, x, block=block):
  for i, layer in enumerate(layers):
    with sites.layer(i):
      x = block(layer, x)
  return head(x)


def jitted(layers, x):
  return unrolled(layers, x, block=jax.jit(block))


def checkpointed(layers, x):
  return unrolled(layers, x, block=jax.checkpoint(block))


def scanned(params, x):
  x, sums = jax.lax.scan(lambda x, layer: ((y := block(layer, x)), y.sum()), x, params)
  return head(x) + sums.mean()


MODELS = {
  'unrolled': (unrolled, layer_list(parameters())),
  'jitted': (jitted, layer_list(parameters())),
  'checkpointed': (checkpointed, layer_list(parameters())),
  'scanned': (scanned, parameters()),
}


def finish(run):
  """Runs a pass to its end, changing nothing."""
  for *_, value in run:
    del value
  return run.retval


def edited(forward, edits, *args):
  """A pass with `edits`: site -> function of the value."""
  for layer, name, value in (run := forward(*args)):
    site = name if layer is None else f'{name}.{layer}'
    if site in edits:
      run.modified_value = edits[site](value)
    del value
  return run.retval
