"""Edits by hand, row by row and position by position, and texts to try them on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.models import decoder
from mechjax.steering import at, everywhere, first, generated, last, mask, prompt
from tests.models import decoders

D = decoders.SMALL['d_model']
PROMPTS = [[5, 3, 8, 1, 9], [2, 7], [4, 4, 6, 1]]
MASK = np.zeros((3, 7), bool)
MASK[0, [0, 4, 6]], MASK[1, 1], MASK[2, [2, 5]] = True, True, True

WHERE = {
  'first': (first(2), lambda row, n, T: [0, 1]),
  'last': (last(2), lambda row, n, T: [n - 2, n - 1]),
  'at': (at(1, 3), lambda row, n, T: [1, 3]),
  'prompt': (prompt, lambda row, n, T: range(n)),
  'generated': (generated, lambda row, n, T: range(n, T)),
  'everywhere': (everywhere, lambda row, n, T: range(T)),
  'answer on': (last(1) | generated, lambda row, n, T: range(n - 1, T)),
  'mask': (mask(MASK), lambda row, n, T: np.flatnonzero(MASK[row])),
}
"""Choices, and for each a function of (row, tokens of the prompt, tokens of the text) to the positions."""


def vector(n=None, seed=0, scale=2.0):
  """A random vector, or one for each of n positions."""
  shape = (D,) if n is None else (n, D)
  return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_hand(kind, v, prompts, T):
  """What an edit adds, [B, T, D]: a vector, or the j-th vector at the j-th position."""
  added = np.zeros((len(prompts), T, D), np.float32)
  for row, ids in enumerate(prompts):
    for j, t in enumerate(WHERE[kind][1](row, len(ids), T)):
      added[row, t] = v if v.ndim == 1 else v[j]
  return added


@functools.cache
def adding(name, site):
  """Function of (params, tokens, added) to the logits of a plain pass in which `added` is added at a site."""
  forward = functools.partial(decoder.forward, config=decoders.CONFIGS[name])
  return jax.jit(
    lambda params, tokens, added: harvest.plant(forward)(
      {site: lambda x: x + added}, params, tokens
    )
  )


def texts(prompts, tokens, T):
  """Prompts and what follows, padded on the right, where no text sees the padding."""
  found = np.zeros((len(prompts), T), np.int32)
  for row, ids, more in zip(found, prompts, tokens):
    row[: len(ids) + len(more)] = [*ids, *more]
  return jnp.asarray(found)
