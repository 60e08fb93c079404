"""A linear model over tokens in which tokens mix: here the first order is the whole truth."""

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.patching import ActivationPatching, Pairs, logit_difference, nodes_of

L, D, F, V, T, B = 3, 6, 8, 11, 5, 4
RANDOM = np.random.default_rng(0)
PARAMS = {
  'embed': RANDOM.standard_normal((V, D)),
  'mix': np.tril(RANDOM.standard_normal((T, T))),
  'up': RANDOM.standard_normal((L, D, F)),
  'down': RANDOM.standard_normal((L, F, D)),
  'unembed': RANDOM.standard_normal((D, V)),
}
PARAMS32 = jax.tree.map(lambda x: x.astype(np.float32), PARAMS)
CLEAN = RANDOM.integers(0, V, (B, T)).astype(np.int32)
PAIRS = Pairs(CLEAN, ((CLEAN + 1 + np.arange(T) % 3) % V).astype(np.int32), np.ones((B, T), bool))
METRIC = logit_difference(PAIRS, np.arange(B), np.arange(B) + 4)


def forward(params, tokens):
  def layer(x, w):
    h = harvest.sow(jnp.einsum('ts,bsd->btd', params['mix'], x) @ w[0], name='mlp_post')
    out = harvest.sow(h @ w[1], name='mlp_out')
    return harvest.sow(x + out, name='resid_post'), None

  x = harvest.sow(jnp.asarray(params['embed'])[tokens], name='embed')
  x, _ = jax.lax.scan(layer, x, (params['up'], params['down']))
  return harvest.sow(x @ params['unembed'], name='logits')


def patch(chosen=None, pairs=PAIRS, metric=METRIC, **options):
  """Exact patching of some nodes, or of all."""
  return ActivationPatching(forward, chosen or nodes(), **options)(PARAMS, pairs, metric)


def nodes(pattern='*', **options):
  return nodes_of(harvest.sites_of(forward, PARAMS, PAIRS.clean), pattern, **options)
