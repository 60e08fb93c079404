"""One small residual model as a scan and as a loop, plain, jitted and checkpointed, and the same in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites

L, D = 6, 4
W = jax.random.normal(jax.random.key(0), (L, D, D)) / 2
X = jnp.linspace(-1.0, 1.0, D)


def layer(w, x):
  m = harvest.sow(jnp.tanh(x @ w), name='mlp_out')
  return harvest.sow(x + m, name='resid_post')


def reference(x, edit=lambda i, m: m):
  """(result, mlp_outs, resid_posts) of the same model in plain numpy."""
  x, outs, posts = np.asarray(x), [], []
  for i in range(L):
    outs.append(np.asarray(edit(i, np.tanh(x @ np.asarray(W[i])))))
    x = x + outs[-1]
    posts.append(x)
  return x * 2, np.stack(outs), np.stack(posts)


def scanned(wrap):
  block = wrap(layer)
  return lambda x: harvest.sow(
    jax.lax.scan(lambda x, w: (block(w, x), None), x, W)[0] * 2, name='logits'
  )


def unrolled(wrap):
  block = wrap(layer)

  def f(x):
    for i in range(L):
      with sites.layer(i):
        x = block(W[i], x)
    return harvest.sow(x * 2, name='logits')

  return f


WRAPS = {'plain': lambda f: f, 'jit': jax.jit, 'checkpoint': jax.checkpoint}
MODELS = pytest.mark.parametrize(
  'f',
  [make(w) for make in (scanned, unrolled) for w in WRAPS.values()],
  ids=[f'{m}-{w}' for m in ('scan', 'loop') for w in WRAPS],
)


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
