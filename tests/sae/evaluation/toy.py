"""A model of two layers, for JAX and again in NumPy, with texts and dictionaries for it.

Letters as in `mechjax.sae`.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites
from mechjax.sae import JumpReLU, ReLU, TopK
from mechjax.sae.evaluation.passes import Evaluation

V, T, D, F, M, LAYERS = 11, 6, 6, 5, 9, 2
R0, R1, N0, N1, O0, O1 = (
  f'{name}.{i}' for name in ('resid_post', 'mlp_norm', 'mlp_out') for i in range(LAYERS)
)


def forward(params, tokens):
  """Means over the tokens so far make a token depend on earlier ones, as attention does."""
  x = harvest.sow(params['embed'][tokens], name='embed')
  n = jnp.arange(1, tokens.shape[1] + 1, dtype=x.dtype)[:, None]
  for i in range(LAYERS):
    with sites.layer(i):
      so_far = jnp.cumsum(x, 1) / n
      h = harvest.sow(x + so_far @ params['mix'][i], name='mlp_norm')
      y = harvest.sow(jnp.tanh(h @ params['in'][i]) @ params['out'][i], name='mlp_out')
      heads = harvest.sow((x + y).reshape(*x.shape[:2], 2, D // 2), name='z')
      x = harvest.sow(heads.reshape(x.shape), name='resid_post')
  return harvest.sow(x @ params['unembed'], name='logits')


def by_hand(p, tokens, change=None):
  """Logits and the values of all sites; `change` has functions of values by site."""
  seen = {}

  def site(name, value):
    seen[name] = value = (change or {}).get(name, lambda v: v)(value)
    return value

  x = site('embed', p['embed'][tokens])
  for i in range(LAYERS):
    so_far = np.cumsum(x, 1) / np.arange(1, tokens.shape[1] + 1)[:, None]
    h = site(f'mlp_norm.{i}', x + so_far @ p['mix'][i])
    y = site(f'mlp_out.{i}', np.tanh(h @ p['in'][i]) @ p['out'][i])
    x = site(f'resid_post.{i}', site(f'z.{i}', x + y))  # heads concatenated
  return x @ p['unembed'], seen


def model(seed=0):
  r = np.random.default_rng(seed)
  shapes = {
    'embed': (V, D),
    'mix': (LAYERS, D, D),
    'in': (LAYERS, D, F),
    'out': (LAYERS, F, D),
    'unembed': (D, V),
  }
  return {k: r.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def texts(n=4, seed=0):
  """Texts that begin with a special token and end in padding."""
  r = np.random.default_rng(seed)
  tokens = r.integers(1, V, (n, T))
  kept = (np.arange(T) > 0) & (np.arange(T) < r.integers(4, T + 1, n)[:, None])
  tokens[:, 0] = 0
  return tokens, kept


def dictionary(sae, seed=0):
  r = np.random.default_rng(seed)
  shapes = {'W_enc': (sae.d_in, M), 'W_dec': (M, sae.target_width), 'b_dec': (sae.target_width,)}
  shapes |= {name: (M,) for name in sae.PER_LATENT}  # noqa: C420
  params = {k: 0.5 * r.standard_normal(s) for k, s in shapes.items()}
  if 'log_threshold' in params:
    params['log_threshold'] = np.log(r.uniform(0.1, 0.4, M))
  if sae.skip:
    params['W_skip'] = r.standard_normal((sae.d_in, sae.target_width))
  params['b_enc'][0] = -100.0  # dead
  return {k: v.astype(np.float32) for k, v in params.items()}


def double(params):
  return {k: np.asarray(v, np.float64) for k, v in params.items()}


SHAPE: dict[str, Any] = {'d_in': D, 'width': M}
CASES = {
  'several sites': (
    {
      'embed': ReLU(**SHAPE, sparsity=0.0),
      O0: TopK(**SHAPE, k=2),
      'z.1': JumpReLU(**SHAPE, sparsity=0.0),
    },
    {},
  ),
  'transcoders': (
    {
      N0: ReLU(**SHAPE, d_out=D, skip=True, sparsity=0.0),
      R0: ReLU(**SHAPE, sparsity=0.0),
      N1: TopK(**SHAPE, d_out=D, k=3),
    },
    {N0: O0, N1: O1},
  ),
}


@functools.cache
def judge(name):
  """The dictionaries are given in another order than that of the forward pass."""
  saes, targets = CASES[name]
  return Evaluation(forward, dict(reversed(saes.items())), dict(reversed(targets.items())))


def several():
  """Parameters for the case of several sites."""
  return {
    site: dictionary(sae, i) for i, (site, sae) in enumerate(CASES['several sites'][0].items())
  }


@functools.cache
def speaker():
  return Evaluation(forward, {R0: ReLU(d_in=D, width=2 * D, sparsity=0.0)})
