"""Dictionaries with known partners, for the tests of analyses."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mechjax.sae import BatchTopK, Gated, JumpReLU, ReLU, TopK
from tests.sae import plain

D, M = 6, 16
SHAPE: dict[str, Any] = {'d_in': D, 'width': M}
SAES = {
  'relu': ReLU(**SHAPE, sparsity=0.0),
  'gated': Gated(**SHAPE, sparsity=0.0),
  'jumprelu': JumpReLU(**SHAPE, sparsity=0.0),
  'batch_topk': BatchTopK(**SHAPE, k=3),
  'topk': TopK(**SHAPE, k=3),
  'skip': JumpReLU(**SHAPE, d_out=5, skip=True, sparsity=0.0),
}


def dictionary(name, seed=0):
  """Random parameters in float32, with thresholds above 0."""
  params = plain.scattered(SAES[name], np.random.default_rng(seed))
  if 'b_gate' in params:
    params['b_mag'] = (np.exp(params['r_mag']) * params['b_gate'] + 0.3).astype(np.float32)
  return {key: jnp.asarray(value) for key, value in params.items()}


def weights(seed=0, width=M, d=D):
  """Encoder and decoder alone, that differ from each other."""
  r = np.random.default_rng(seed)
  return {'W_enc': r.standard_normal((d, width)), 'W_dec': r.standard_normal((width, d))}


def shuffle(params, permutation):
  """The latents in another order, for parameters without other axes."""
  return {'W_enc': params['W_enc'][:, permutation], 'W_dec': params['W_dec'][permutation]}
