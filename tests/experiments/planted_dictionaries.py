"""A decoder with known activations and known answers for the studies of dictionaries, and its texts.

The layers add nothing, so the residual stream of every layer is the embedding. It has eight large entries, which no
logit depends on, and eight small ones, which decide the next token: the texts follow two cycles of tokens, 4 to 23 in
the ordinary text, 24 to 30 in the other one, and jump at random once in ten tokens. A copy
that is fine-tuned on the other text writes one entry, which the model does not use, at the tokens that only this text
has: `tune_planted`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.models import decoder, ours
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from tests.models import decoders

BOS, EOS, D, V, FIRST_OTHER, NEW = 1, 2, 16, decoders.V, 24, 7
CONFIG = dataclasses.replace(decoders.CONFIGS['gpt2'], tied=False, norm='rms')
NEXT = np.arange(V)
NEXT[4:FIRST_OTHER] = np.roll(np.arange(4, FIRST_OTHER), -1)
NEXT[FIRST_OTHER:] = np.roll(np.arange(FIRST_OTHER, V), -1)
ZERO = ('positions', 'o', 'o_bias', 'down', 'down_bias')


def embeddings():
  """Large and small entries of each token, [V, D]."""
  random = np.random.default_rng(0)
  large, small = random.standard_normal((2, V, D // 2))
  large[:, NEW] = large[FIRST_OTHER:] = 0
  large[4:FIRST_OTHER] -= large[4:FIRST_OTHER].mean(0)
  return np.concatenate([3 * large, small / np.linalg.norm(small, axis=1, keepdims=True)], 1)


@functools.cache
def planted_params():
  x = embeddings()
  unembed = np.zeros((D, V))
  unembed[D // 2 :, NEXT] = 25 * x[:, D // 2 :].T

  def fill(path, shape):
    name = path[-1].key
    if path[0].key == 'unembed':
      assert shape.shape == (D, V)
      return jnp.asarray(unembed, 'float32')
    if name == 'tokens':
      return jnp.asarray(x, 'float32')
    if name == 'scale':
      return jnp.ones(shape.shape)
    random = np.random.default_rng(len(str(path)))
    return jnp.asarray(0.0 if name in ZERO else 0.1, 'float32') * random.standard_normal(
      shape.shape
    ).astype('float32')

  return jax.tree_util.tree_map_with_path(fill, decoder.shapes(CONFIG))


@functools.cache
def model(name='planted'):
  tokenizer = Tokenizer(
    lambda text: [int(word[1:]) for word in text.split()],
    lambda ids: ''.join(f' w{i}' for i in ids), V, BOS, EOS,
  )  # fmt: skip
  return LanguageModel(name, ours.forward(planted_params(), CONFIG), tokenizer)


def write_text(path, low, high, n, seed):
  """A text whose tokens follow their cycles, and jump to any token from `low` up to `high` once in ten."""
  random = np.random.default_rng(seed)
  ids = [low]
  for jump, drawn in zip(random.random(n - 1) < 0.1, random.integers(low, high, n - 1)):
    ids.append(int(drawn) if jump else int(NEXT[ids[-1]]))
  path.write_text(' '.join(f'w{i}' for i in ids))
  return str(path)


def tune_planted(model, rows, *, steps, size, rate):
  """The copy of the model, in place of a training."""
  embed = dict(model.params['embed'])
  embed['tokens'] = embed['tokens'].at[FIRST_OTHER:, NEW].set(16.0)
  return model.params | {'embed': embed}, [1.0] * steps
