"""Two models in one function, and tokenizers that differ."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SAEError
from mechjax.models import ours
from mechjax.models.tokenizers import Tokenizer
from mechjax.train_sae.two_models import check_same_tokens, join_forwards, name_of
from tests.models import decoders

SITES = ['resid_post.1', 'mlp_out.0', 'final_norm']


def test_both_models_are_read_as_each_is_alone():
  models = [ours.forward(decoders.params(n), decoders.CONFIGS[n]) for n in ('gpt2', 'qwen')]
  joined = join_forwards([model.apply for model in models], SITES)
  pair = tuple(model.params for model in models)
  named = [name_of(name, site) for name in ('model', 'other_model') for site in SITES]
  found = jax.jit(harvest.reap(joined, sites=named))(pair, decoders.TOKENS)
  assert sorted(map(str, found)) == sorted(named)
  for name, model in zip(('model', 'other_model'), models):
    alone = harvest.reap(model.apply, sites=SITES)(model.params, decoders.TOKENS)
    for site in SITES:
      np.testing.assert_allclose(found[name_of(name, site)], alone[site], rtol=1e-5, atol=1e-5)


PIECES = ['<s>', 'a', 'b', 'ab', ' ']


def tokenizer(pieces=PIECES, **changes: Any):
  """A tokenizer of single characters."""

  def split(text):
    return [pieces.index(c) if c in pieces else 4 for c in text]

  return Tokenizer(split, lambda ids: ''.join(pieces[i] for i in ids), len(pieces), 0, 0, **changes)


def test_tokenizers_that_agree_are_accepted_whatever_ends_a_text():
  check_same_tokens(tokenizer(), dataclasses.replace(tokenizer(), eos=4, bos=None), ('a', 'b'))


@pytest.mark.parametrize(
  ('other', 'says'),
  [
    (tokenizer([*PIECES, 'c']), 'base has 5 tokens and chat has 6'),
    (tokenizer(['<s>', 'a', 'c', 'ab', ' ']), "token 2 is 'b' for base and 'c' for chat"),
    (dataclasses.replace(tokenizer(), split=lambda text: [1, 2]), r'chat into \[1, 2\]'),
  ],
)
def test_tokenizers_that_differ_are_errors(other, says):
  with pytest.raises(SAEError, match=says):
    check_same_tokens(tokenizer(), other, ('base', 'chat'))
