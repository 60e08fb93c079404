"""Parts of a text that are encoded on their own are the text again, with every kind of tokenizer."""

import itertools

import pytest

from mechjax.providers.local_prompts import encode_part, encode_prompt
from mechjax.providers.requests import Message
from tests.models.vocabularies import BOS, KINDS, like_gpt2, like_llama, read

PARTS = ['a b', '\t', '7', '\n', ' a', '\t', '10', '\n', 'é', '\t', 'unknown', '\n']


@KINDS
def test_pieces_tabs_and_answers_join_to_the_lines_of_a_table(tmp_path, kind):
  tokenizer = read(tmp_path, kind())
  ids = [encode_part(tokenizer, part) for part in PARTS]
  assert tokenizer.join([*itertools.chain(*ids)]) == ''.join(PARTS)


@pytest.mark.parametrize('kind', [like_llama, like_gpt2])
def test_a_word_with_its_space_is_one_token_and_a_word_without_is_another(tmp_path, kind):
  tokenizer = read(tmp_path, kind())
  assert [tokenizer.join(list(encode_part(tokenizer, text))) for text in (' a', 'a')] == [' a', 'a']
  assert [len(encode_part(tokenizer, text)) for text in (' a', 'a', '7')] == [1, 1, 1]


@pytest.mark.parametrize('kind', [like_llama, like_gpt2])
def test_a_prompt_is_its_text_after_the_token_that_begins_texts(tmp_path, kind):
  tokenizer = read(tmp_path, kind('<s> $A </s>'))
  asked = (Message('user', 'a</s>'), Message('assistant', 'b  '))
  prompt = encode_prompt(tokenizer, asked)
  assert prompt.ids[0] == BOS
  assert tokenizer.decode(prompt.ids) == 'User:\na</s>\n\nAssistant:\nb'
  assert BOS + 1 not in prompt.ids  # neither a special piece nor the end of a text
  assert prompt.lead == '  '
