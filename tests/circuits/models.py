"""Small decoders in float64 with all their sites, for the tests of circuits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.models import decoder
from tests.models import decoders

CONFIGS = {
  **decoders.CONFIGS,
  'sinks': dataclasses.replace(decoders.CONFIGS['mistral'], attn_sinks=True, local=(True, False)),
}
TOKENS = np.asarray(decoders.TOKENS)


def apply(name, params, tokens, mask=None):
  return decoder.forward(params, tokens, CONFIGS[name], segments=mask)


@functools.cache
def params(name):
  """Random parameters in float64; call it where 64 bits are enabled."""
  if name in decoders.CONFIGS:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(name))
  random = np.random.default_rng(0)
  filled = lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float64)  # noqa: E731
  return jax.tree.map(filled, decoder.shapes(CONFIGS[name]))


@functools.cache
def sites(name):
  """Values at all sites of the texts of `TOKENS`."""
  return harvest.reap(functools.partial(apply, name), sites='*')(params(name), jnp.asarray(TOKENS))
