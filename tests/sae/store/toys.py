"""A model small enough to be computed by hand, in three forms: scanned, unrolled, and in NumPy.

Letters: B rows, T tokens, D width, L layers, N heads of H.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites
from mechjax.sae.store.contexts import Contexts

V, D, L, N, H = 11, 6, 4, 3, 2
BOS = 0


def params(seed=0):
  random = np.random.default_rng(seed)
  return {
    'embed': random.standard_normal((V, D)).astype(np.float32),
    'w': 0.5 * random.standard_normal((L, D, D)).astype(np.float32),
  }


def block(x, w):
  x = harvest.sow(jnp.tanh(x @ w), name='resid_post')
  harvest.sow(x.reshape(*x.shape[:2], N, H), name='z')
  harvest.sow(x.sum((-2, -1)), name='of_a_row')
  return x


def scanned(params, tokens):
  x = jnp.asarray(params['embed'])[tokens]
  return jax.lax.scan(lambda x, w: (block(x, w), None), x, params['w'])[0]


def written_out(params, tokens):
  x = jnp.asarray(params['embed'])[tokens]
  for i in range(L):
    with sites.layer(i):
      x = block(x, params['w'][i])
  return x


def by_hand(params, tokens, layer):
  """resid_post of a layer, [B, T, D], in NumPy."""
  x = params['embed'][tokens]
  for w in params['w'][: layer + 1]:
    x = np.tanh(x @ w)
  return x


def contexts(n=20, length=5, seed=0):
  """Contexts with special tokens (0 and 1) here and there, and one that has nothing else."""
  tokens = np.random.default_rng(seed).integers(0, V, (n, length)).astype(np.int32)
  tokens[:, 0] = BOS
  tokens[n // 2] = 1
  return Contexts(tokens, np.arange(n), (0, 1), f'toy {n} {length} {seed}')


def kept(contexts, values):
  """Values [N, T, ...] of the tokens that are not special, [n, ...]."""
  return np.concatenate([v[~np.isin(t, contexts.special)] for t, v in zip(contexts.file, values)])
