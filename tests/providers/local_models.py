"""Small models with a tokenizer of characters, and the same answers by plain passes, each over one text from its start.

The truth shares nothing with the provider but the model's forward pass without a cache: prompts are written out here,
every prefix of a text is a pass of its own, and probabilities come from SciPy.
"""

import dataclasses
import functools
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mechjax.errors import MechjaxError
from mechjax.models import chat, decoder, ours
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.providers import Message
from tests.models import decoders

CHARS = sorted({*string.ascii_letters, *string.digits, *' \n\t:.,?-"[]'})
BOS, STOP, USER, ASSISTANT = range(len(CHARS), len(CHARS) + 4)
V, T = len(CHARS) + 4, 320
SPECIAL = {'[user]': USER, '[assistant]': ASSISTANT}
DIGITS = tuple(string.digits)
FAMILIES = ['gpt2', 'mistral', 'qwen', 'gemma']
TEMPLATE = (
  '{% for m in messages %}[{{ m.role }}]{{ m.content }}.{% endfor %}'
  '{% if add_generation_prompt %}[assistant]{% endif %}'
)


def split(text):
  for char in text:
    if char not in CHARS:
      raise MechjaxError(f'the vocabulary lacks {char!r}')
  return [CHARS.index(char) for char in text]


def join(ids):
  return ''.join([*CHARS, '<bos>', '<stop>', *SPECIAL][i] for i in ids)


def split_special(text):
  parts = re.split(r'(\[user\]|\[assistant\])', text)
  return [i for part in parts for i in ([SPECIAL[part]] if part in SPECIAL else split(part))]


TOKENIZER = Tokenizer(split, join, V, None, STOP, stop_ids=(STOP,))
CHATTING = dataclasses.replace(
  TOKENIZER,
  template=chat.ChatTemplate(TEMPLATE, {}),
  special=SPECIAL,
  split_special=split_special,
)


@functools.cache
def model(name, tokenizer=TOKENIZER, cached=True, n_positions=T):
  config = dataclasses.replace(decoders.CONFIGS[name], n_vocab=V)
  if config.n_positions:
    config = dataclasses.replace(config, n_positions=n_positions)
  random = np.random.default_rng(3)
  shift = 1 - config.norm_offset

  def fill(path, shape):
    centre = shift if path[-1].key in ('scale', 'q_norm', 'k_norm') else 0
    return jnp.asarray(centre + 0.3 * random.standard_normal(shape.shape), 'float32')

  params = jax.tree_util.tree_map_with_path(fill, decoder.shapes(config))
  forward = ours.forward(params, config)
  if not cached:
    forward = dataclasses.replace(forward, generator=None)
  return LanguageModel(name, forward, tokenizer)


def user(text):
  return (Message('user', text),)


def written(*contents):
  """Ids of the plain form of messages of the user, with the message of the assistant opened."""
  return split(''.join(f'User:\n{text}\n\n' for text in contents) + 'Assistant:\n')


def log_probs(own, ids):
  """Log-probabilities of the token after a text, by one pass without a mask or a cache: float64 [V]."""
  tokens = np.zeros((1, own.generator.max_length or T), np.int32)
  tokens[0, : len(ids)] = ids
  logits = np.asarray(own(jnp.asarray(tokens)), np.float64)[0, len(ids) - 1]
  return scipy.special.log_softmax(logits)


def probability(own, ids, answer):
  """Probability of some tokens after a text, token by token."""
  total = 0.0
  for i, token in enumerate(answer):
    total += log_probs(own, [*ids, *answer[:i]])[token]
  return np.exp(total)


def probabilities(own, ids, answers):
  return [probability(own, ids, split(answer)) for answer in answers]


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-9)
