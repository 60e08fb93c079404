"""A dictionary whose activations are known exactly, and texts for it.

A token has its own axis, and a size that depends on the token before it: 1, 1/2, 1/4 or 1/8. All products are exact.

    latent 0   fires on token 3            near in the decoder: 1
    latent 1   fires on token 4            near in the decoder: 0
    latent 2   never
    latent 3   fires on tokens 5 to 8
    latent 4   everywhere
    latent 5   fires on token 19, which is in three sequences
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.autointerp import ExampleSettings, collect_examples
from mechjax.sae import ReLU
from mechjax.sae.features import FeatureSettings

V, T, M, N = 20, 24, 6, 240
SIZES = np.array([1, 0.5, 0.25, 0.125], np.float32)
PIECES = tuple(f' word{n}' for n in range(V))
SAE = ReLU(d_in=V, width=M, sparsity=0.0)
SETTINGS = ExampleSettings(
  window=6,
  min_window=3,
  n_shown=10,
  n_shown_top=4,
  n_shown_inactive=3,
  n_active=16,
  n_inactive=12,
  n_hard=6,
  n_random=8,
  n_near=1,
  n_windows=400,
  min_examples=4,
  features=FeatureSettings(n_top=3, levels=4, per_level=2, before=2, after=1, n_near=2, n_logits=2),
)


def make_params():
  W_enc = np.zeros((V, M), np.float32)
  W_enc[3, 0] = W_enc[4, 1] = W_enc[19, 5] = 1
  W_enc[5:9, 3] = 1
  b_enc = np.zeros(M, np.float32)
  b_enc[4] = 1
  W_dec = np.eye(M, V, dtype=np.float32)
  W_dec[1] = 0.8 * W_dec[0] + 0.6 * W_dec[1]
  return {'W_enc': W_enc, 'W_dec': W_dec, 'b_enc': b_enc, 'b_dec': np.zeros(V, np.float32)}


def make_texts():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V - 1, (N, T))
  tokens[[7, 70, 170], [5, 10, 15]] = 19
  kept = np.ones((N, T), bool)
  kept[:, 0] = False
  kept[::5, 18:] = False
  kept[3::11, 9] = False
  return tokens, kept


PARAMS = make_params()
TOKENS, KEPT = make_texts()


@jax.jit
def activations(tokens):
  """Inputs of the dictionary, [B, T, V]."""
  tokens = jnp.asarray(tokens)
  before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  return jax.nn.one_hot(tokens, V) * jnp.asarray(SIZES)[before % 4][..., None]


def sizes():
  """Length of each token's activation by NumPy, [N, T]."""
  return SIZES[np.pad(TOKENS, ((0, 0), (1, 0)))[:, :-1] % 4]


@functools.cache
def truth():
  """Activations of all latents by NumPy, [N, T, M]; 0 where a token does not count."""
  x = np.eye(V)[TOKENS] * sizes()[..., None]
  return np.maximum(x @ PARAMS['W_enc'] + PARAMS['b_enc'], 0) * KEPT[..., None]


def collect(cuts=(60, 120, 180), batches=None, pieces=PIECES, **changes):
  """`collect_examples` of the planted dictionary."""
  arguments: dict[str, Any] = {'latents': [0, 3, 2, 5], 'settings': SETTINGS, 'seed': 0} | changes
  cut = zip(np.split(TOKENS, cuts), np.split(KEPT, cuts))
  return collect_examples(activations, SAE, PARAMS, batches or cut, pieces, **arguments)
