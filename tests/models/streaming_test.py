"""Text that arrives in pieces is the text of all ids at once, for any ids and every kind of decoder."""

import functools
import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from mechjax.errors import MechjaxError
from mechjax.models import tokenizers
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile
from tests.models import vocabularies


@functools.cache
def published(name):
  return tokenizers.from_gguf(GGUFFile(fetch.path_of(name)).metadata)


def stream(tokenizer, ids):
  """The pieces of a stream, the rest included."""
  text = tokenizer.stream()
  return [*map(text.push, ids), text.close()]


def check(tokenizer, ids):
  pieces = stream(tokenizer, ids)
  assert ''.join(pieces) == tokenizer.decode(ids)
  return pieces


@pytest.mark.parametrize('name', ['smollm2-135m', 'gemma3-270m'])
@given(data=st.data())
def test_pieces_joined_are_the_text_of_random_ids_of_real_vocabularies(name, data):
  tokenizer = published(name)
  # Single bytes are among the first ids of one vocabulary and of the other.
  ids = st.one_of(st.integers(0, 500), st.integers(0, tokenizer.n_vocab - 1))
  check(tokenizer, data.draw(st.lists(ids, max_size=40)))


@vocabularies.KINDS
@pytest.mark.parametrize('template', [None, '<s> $A'])
def test_pieces_joined_are_the_text_of_any_ids_in_files_of_every_kind(tmp_path, kind, template):
  tokenizer = vocabularies.read(tmp_path, kind(template))

  @given(ids=st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=12))
  @example(ids=[1, vocabularies.WORDS.index('▁'), vocabularies.WORDS.index('▁'), 5])
  @example(ids=[vocabularies.WORDS.index(f'<0x{b:02X}>') for b in '漢'.encode() + b'\xff'])
  def run(ids):
    check(tokenizer, ids)

  run()


@pytest.mark.parametrize('name', ['smollm2-135m', 'gemma3-270m'])
def test_a_character_of_several_tokens_arrives_whole(name):
  tokenizer = published(name)
  text = 'naïve 漢字 👩‍🔬 \U0001f9ff.'
  ids = tokenizer.encode(text, bos=False)
  assert len(ids) > len(list(itertools.takewhile(str.isascii, text)))
  pieces = check(tokenizer, ids)
  assert '\ufffd' not in ''.join(pieces)
  assert '' in pieces[:-1]  # inside a character
  assert pieces[-1] == ''


def test_plain_words_arrive_token_by_token():
  tokenizer = published('smollm2-135m')
  words = [' the', ' capital', ' of', ' France']
  assert stream(tokenizer, map(tokenizer.token, words)) == [*words, '']


def test_a_stream_is_ready_for_another_text_after_the_end_of_one():
  tokenizer = published('gemma3-270m')
  ids = tokenizer.encode('Hello')
  text = tokenizer.stream()
  for _ in range(2):
    assert ''.join([*map(text.push, ids), text.close()]) == 'Hello'
  with pytest.raises(MechjaxError, match='-1 is not a token id'):
    text.push(-1)
