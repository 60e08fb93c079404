"""The tokenizer of the default model, read from the header of its weights, and small ones of every kind in files."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers as library
from hypothesis import example, given

from mechjax.errors import MechjaxError, WeightsError
from mechjax.models import tokenizers
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile
from tests.models.vocabularies import (
  BOS,
  KINDS,
  TEMPLATES,
  WORDS,
  like_gpt2,
  read,
)


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
  with pytest.raises(WeightsError, match=r"(?s)pre-tokenizer 'qwen2'.*\['gpt-2', 'smollm'\]"):
    tokenizers.from_gguf({**metadata, 'tokenizer.ggml.pre': 'qwen2'})
  with pytest.raises(WeightsError, match="kind 'rwkv'"):
    tokenizers.from_gguf({**metadata, 'tokenizer.ggml.model': 'rwkv'})


# --- tokenizer.json -----------------------------------------------------------------------------------------


def test_an_id_far_beyond_the_number_of_tokens_is_refused(tmp_path):
  made = json.loads(like_gpt2().to_str())
  made['model']['vocab']['Ġb'] = 10**9
  (tmp_path / 'tokenizer.json').write_text(json.dumps(made))  # the library would write every hole
  with pytest.raises(WeightsError, match="gives 'Ġb' the id 1000000000, and has 2"):
    tokenizers.from_huggingface(tmp_path, {})


@KINDS
@pytest.mark.parametrize('template', TEMPLATES)
def test_texts_become_what_the_library_makes_of_them_by_the_same_file(tmp_path, kind, template):
  made = kind(template)
  tokenizer = read(tmp_path, made)
  for text in ('a b', ' a', 'b a\nb', 'é'):
    assert tokenizer.encode(text) == made.encode(text).ids
  assert tokenizer.bos == (BOS if '<s>' in (template or '') else None)


@KINDS
@pytest.mark.parametrize('template', TEMPLATES)
def test_a_beginning_that_is_written_out_is_not_put_there_twice(tmp_path, kind, template):
  tokenizer = read(tmp_path, kind(template))
  assert tokenizer.encode('<s>a').count(BOS) == 1
  assert tokenizer.encode('<s><s>a').count(BOS) == 2  # as it is written


def test_a_beginning_is_there_or_not_as_the_caller_says(tmp_path):
  tokenizer = read(tmp_path, like_gpt2('<s> $A'))
  assert tokenizer.encode('a', bos=True) == tokenizer.encode('a') == [BOS, *tokenizer.split('a')]
  assert tokenizer.encode('a', bos=False) == tokenizer.split('a')
  with pytest.raises(MechjaxError, match='does not begin a text with a token'):
    read(tmp_path, like_gpt2()).encode('a', bos=True)


def test_more_than_one_token_before_a_text_is_an_error(tmp_path):
  with pytest.raises(WeightsError, match=r'puts 2 tokens before every text: \(1, 2\)'):
    read(tmp_path, like_gpt2('<s> </s> $A'))


@KINDS
def test_settings_for_training_batches_neither_cut_nor_pad_a_text(tmp_path, kind):
  expected = kind('<s> $A').encode('a b a b a').ids
  made = kind('<s> $A')
  made.enable_truncation(3)
  made.enable_padding(length=20, pad_id=0, pad_token='<unk>')
  tokenizer = read(tmp_path, made)
  assert tokenizer.encode('a b a b a') == expected
  assert tokenizer.split('a b a b a') == expected[1:]


@KINDS
@pytest.mark.parametrize('text', ['a b a', 'b', 'a\nb', 'é a', ' a'])
def test_pieces_of_a_text_keep_their_spaces_and_whole_texts_are_as_they_were(tmp_path, kind, text):
  made = kind('<s> $A')
  tokenizer = read(tmp_path, made)
  ids = tokenizer.encode(text)
  text = made.decode(ids[1:], skip_special_tokens=False)
  assert tokenizer.decode(ids) == text
  for cut in range(1, len(ids)):
    before, behind = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])
    if '\ufffd' not in before + behind:  # not within a character
      lead = tokenizer.lead if cut == 1 else ''
      assert before + behind.removeprefix(lead) == text
  assert [tokenizer.decode([i]) for i in ids if WORDS[i : i + 1] == ['▁a']] == [' a'] * (
    kind is not like_gpt2 and ids.count(WORDS.index('▁a'))
  )


@KINDS
def test_a_token_is_the_text_that_it_adds_behind_other_text(tmp_path, kind):
  tokenizer = read(tmp_path, kind('<s> $A </s>'))
  for text in (' a', ' b', 'a', 'b'):
    assert tokenizer.join([tokenizer.token(text)]) == text
  assert tokenizer.token(' a') in tokenizer.encode('b a b')
  with pytest.raises(MechjaxError, match=r"(?s)' a b' is 2 tokens: \[' a', ' b'\]"):
    tokenizer.token(' a b')
  with pytest.raises(MechjaxError, match=r"'' is 0 tokens"):
    tokenizer.token('')


def test_a_word_that_the_vocabulary_lacks_is_no_token(tmp_path):
  words = library.Tokenizer(library.models.WordLevel({'One': 1, 'two': 2}, unk_token='One'))
  words.decoder = library.decoders.Fuse()
  tokenizer = read(tmp_path, words)
  assert tokenizer.token('two') == 2
  with pytest.raises(MechjaxError, match="'three' becomes the token 'One'"):
    tokenizer.token('three')


def test_every_end_that_the_files_name_is_a_stop(tmp_path):
  made = like_gpt2()
  assert read(tmp_path, made).stop_ids == ()
  assert read(tmp_path, made, {'eos_token_id': 5}).stop_ids == (5,)
  inner = {'text_config': {'eos_token_id': [6, 5], 'vocab_size': 300}}
  assert read(tmp_path, made, inner).stop_ids == (6, 5)
  both = read(tmp_path, made, {'eos_token_id': [7, 5]}, generation_config={'eos_token_id': [5, 8]})
  assert both.stop_ids == (7, 5, 8)
  assert both.eos == 7
  alone = read(tmp_path, made, {'eos_token_id': None}, generation_config={'eos_token_id': 9})
  assert alone.stop_ids == (9,)


@pytest.mark.parametrize('wrong', [-1, 10**6, 1.0, 'x', True, [5, None], [5, 1e400]])
def test_an_end_that_is_no_token_is_an_error(tmp_path, wrong):
  with pytest.raises(WeightsError, match='eos_token_id='):
    read(tmp_path, like_gpt2(), {'eos_token_id': wrong})


def test_every_end_that_a_header_names_is_a_stop(metadata):
  named = {f'tokenizer.ggml.{x}_token_id': i for x, i in (('eos', 2), ('eot', 7), ('eom', 8))}
  tokenizer = tokenizers.from_gguf(metadata | named)
  assert (tokenizer.eos, tokenizer.stop_ids) == (2, (2, 7, 8))
  with pytest.raises(WeightsError, match='eot_token_id=49152'):
    tokenizers.from_gguf(metadata | {'tokenizer.ggml.eot_token_id': 49152})


def test_a_header_says_whether_texts_are_closed(metadata, tokenizer):
  closed = tokenizers.from_gguf({**metadata, 'tokenizer.ggml.add_eos_token': True})
  assert closed.encode('Hello') == [*tokenizer.encode('Hello'), 2]


@pytest.mark.parametrize('wrong', [-1, 49152, 1.5, True, 'a'])
def test_what_is_no_token_has_no_text(tokenizer, wrong):
  with pytest.raises(MechjaxError, match=f'{wrong!r} is not a token id'):
    tokenizer.decode([5, wrong])


@pytest.mark.parametrize('wrong', [['a', 'b'], 5, None, b'a'])
def test_one_text_is_wanted(tokenizer, wrong):
  for method in (tokenizer.encode, tokenizer.token):
    with pytest.raises(MechjaxError, match='expected one text'):
      method(wrong)


def test_scored_pieces_begin_with_bos_where_the_header_is_silent_and_lack_no_character_silently():
  header = {
    'model': 'llama', 'add_space_prefix': False, 'bos_token_id': 2, 'eos_token_id': 1,
    'tokens': ['<pad>', '<eos>', '<bos>', 'a'],
    'scores': np.zeros(4, np.float32), 'token_type': np.array([3, 3, 3, 1], np.int32),
  }  # fmt: skip
  header = {f'tokenizer.ggml.{key}': value for key, value in header.items()}
  tokenizer = tokenizers.from_gguf(header)
  assert tokenizer.encode('aa') == [2, 3, 3]
  assert tokenizer.encode('<bos>a') == [2, 3]
  assert tokenizers.from_gguf(header | {'tokenizer.ggml.add_bos_token': False}).encode('a') == [3]
  with pytest.raises(MechjaxError, match="the vocabulary cannot write 'b'"):
    tokenizer.encode('ab')
