"""The tokenizer of the default model, read from the header of its weights."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from mechjax.errors import MechjaxError, WeightsError
from mechjax.models import tokenizers
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile


@pytest.fixture(scope='module')
def metadata():
  return GGUFFile(fetch.path_of('smollm2-135m')).metadata


@pytest.fixture(scope='module')
def tokenizer(metadata):
  return tokenizers.from_gguf(metadata)


# The bytes that SmolLM2's vocabulary has no token for and that UTF-8 can contain.
UNWRITABLE = set(b'\x04\x06\x13\x14\x16\x1d\xf1\xf2')


@given(text=st.text().filter(lambda text: UNWRITABLE.isdisjoint(text.encode())))
@example(text='  two spaces,\ttab\r\nand naïve 漢字 👩‍🔬 \x00')
@example(text='<|im_start|>user\nhi<|im_end|>')
def test_any_unicode_text_survives_the_round_trip(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert all(0 <= i < tokenizer.n_vocab for i in ids)


@given(before=st.text('abc 漢'), char=st.sampled_from('\x04\x1d\U00040000\U000bffff'))
def test_a_character_that_the_vocabulary_cannot_write_is_named_not_dropped(tokenizer, before, char):
  with pytest.raises(MechjaxError, match=f'U\\+{ord(char):04X}') as e:
    tokenizer.encode(before + char + 'after')
  assert e.value.where == f'character {len(before)} of the text'


@given(number=st.integers(0, 10**12))
def test_digits_are_split_one_by_one(tokenizer, number):
  pieces = [tokenizer.decode([i]) for i in tokenizer.encode(f'x{number}y')]
  assert pieces == ['x', *str(number), 'y']


def test_common_words_are_one_token_with_their_space(tokenizer):
  pieces = [tokenizer.decode([i]) for i in tokenizer.encode('The capital of France is')]
  assert pieces == ['The', ' capital', ' of', ' France', ' is']


def test_special_tokens_are_single_ids(tokenizer):
  assert tokenizer.encode('<|im_start|>') == [1]
  assert tokenizer.encode('<|im_end|>') == [2]
  assert tokenizer.eos == 2


def test_a_beginning_token_is_added_exactly_when_the_header_asks_for_it(metadata, tokenizer):
  assert tokenizer.bos is None
  asked = tokenizers.from_gguf({**metadata, 'tokenizer.ggml.add_bos_token': True})
  assert asked.encode('Hello') == [1, *tokenizer.encode('Hello')]
  assert asked.decode(asked.encode('Hello')) == 'Hello'


def test_an_unknown_way_of_cutting_text_is_an_error_listing_the_known_ones(metadata):
  with pytest.raises(WeightsError, match=r"(?s)'qwen2', is not known.*\['gpt-2', 'smollm'\]"):
    tokenizers.from_gguf({**metadata, 'tokenizer.ggml.pre': 'qwen2'})
  with pytest.raises(WeightsError, match="kind 'rwkv'"):
    tokenizers.from_gguf({**metadata, 'tokenizer.ggml.model': 'rwkv'})
