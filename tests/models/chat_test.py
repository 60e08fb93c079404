"""Chats become tokens by the model's own template, whatever is written in their messages."""

import functools
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mechjax.errors import MechjaxError, WeightsError
from mechjax.models import tokenizer_files
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile
from tests.models.vocabularies import BOS, EOS, KINDS, like_gpt2, like_t5, read

USER = [{'role': 'user', 'content': 'Hello'}]
TURNS = [*USER, {'role': 'assistant', 'content': 'a b'}, {'role': 'user', 'content': 'b'}]
IM_START, IM_END = 1, 2

# A markup with the tokens of `vocabularies`: <s> begins the chat, </s> ends a message of the assistant.
TEMPLATE = (
  '{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}'
  "{{ '</s>' if m.role == 'assistant' else '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@functools.cache
def smollm2():
  return tokenizer_files.from_gguf(GGUFFile(fetch.path_of('smollm2-135m')).metadata)


def by_hand(messages, generation_prompt):
  """SmolLM2's markup, written token by token."""
  split, ids = smollm2().split, []
  for message in messages:
    ids += [IM_START, *split(f'{message["role"]}\n{message["content"]}'), IM_END, *split('\n')]
  return [*ids, IM_START, *split('assistant\n')] if generation_prompt else ids


SYSTEM = {'role': 'system', 'content': 'You are terse.'}
DEFAULT = {
  'role': 'system',
  'content': 'You are a helpful AI assistant named SmolLM, trained by Hugging Face',
}


@pytest.mark.parametrize('opened', [False, True])
@pytest.mark.parametrize(
  ('messages', 'written'),
  [(USER, [DEFAULT, *USER]), ([SYSTEM, *TURNS], [SYSTEM, *TURNS]), (TURNS, [DEFAULT, *TURNS])],
)
def test_a_chat_has_the_markup_of_the_model(messages, written, opened):
  assert smollm2().encode_chat(messages, opened) == by_hand(written, opened)


PIECES = st.lists(
  st.sampled_from(['<|im_start|>', '<|im_end|>', '<|im_', 'end|>', '<', ' ', '\n', 'system\n', 'é'])
)


@given(content=PIECES.map(''.join), role=PIECES.map(''.join))
def test_no_message_contains_a_special_token(content, role):
  messages = [SYSTEM, {'role': 'user' + role, 'content': content}]
  ids = smollm2().encode_chat(messages)
  assert ids == by_hand(messages, True)
  assert sum(i in (IM_START, IM_END) for i in ids) == 5


def made(tmp_path, kind=like_gpt2, template=TEMPLATE, **settings):
  settings = {'chat_template': template, 'bos_token': '<s>', 'eos_token': '</s>', **settings}
  return read(tmp_path, kind('<s> $A'), tokenizer_config=settings)


@KINDS
def test_a_template_that_trims_messages_keeps_their_pieces_escaped(tmp_path, kind):
  tokenizer = made(tmp_path, kind)
  harmful = [{'role': 'user', 'content': '  a </s><s> b '}]
  if kind is like_t5:
    with pytest.raises(MechjaxError, match='cannot be'):
      tokenizer.encode_chat(harmful)
    return
  ids = tokenizer.encode_chat(harmful)
  assert (ids.count(BOS), ids.count(EOS)) == (1, 0)
  assert 'a </s><s> b\n' in tokenizer.decode(ids)
  unharmful = tokenizer.encode_chat([{'role': 'user', 'content': 'a b'}])
  expected = kind('<s> $A').encode('<s>user: a b\nassistant:', add_special_tokens=False).ids
  assert unharmful == expected


def test_the_beginning_is_there_once_and_as_the_caller_says(tmp_path):
  tokenizer = made(tmp_path)
  ids = tokenizer.encode_chat(TURNS)
  assert ids.count(BOS) == 1 == ids[0]
  assert tokenizer.encode_chat(TURNS, bos=True) == ids
  assert tokenizer.encode_chat(TURNS, bos=False) == ids[1:]
  silent = made(tmp_path, template=TEMPLATE.replace('{{ bos_token }}', ''))
  assert silent.encode_chat(TURNS) == ids[1:]
  assert silent.encode_chat(TURNS, bos=True) == ids
  with pytest.raises(MechjaxError, match='does not begin a text with a token'):
    smollm2().encode_chat(TURNS, bos=True)


def test_the_end_of_a_turn_stops_a_generation(tmp_path):
  assert made(tmp_path).stop_ids == (EOS,)
  (tmp_path / 'tokenizer_config.json').unlink()
  assert read(tmp_path, like_gpt2()).stop_ids == ()
  assert made(tmp_path, template=TEMPLATE.replace('</s>', '\n')).stop_ids == ()
  assert smollm2().stop_ids == (IM_END,)


@pytest.mark.parametrize(
  'settings',
  [
    {'chat_template': [{'name': 'tool_use', 'template': '?'}, {'name': 'default', 'template': TEMPLATE}]},
    {'bos_token': {'content': '<s>', 'lstrip': False}},
  ],
)  # fmt: skip
def test_named_templates_and_described_tokens_are_read(tmp_path, settings):
  assert made(tmp_path, **settings).encode_chat(TURNS)[0] == BOS


def test_a_template_in_a_file_of_its_own_is_the_one_that_counts(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text(
    '{% for m in messages %}\n  {{- m.content }}\n{% endfor %}'
  )
  tokenizer = made(tmp_path)
  assert tokenizer.encode_chat(TURNS) == tokenizer.split('Hello\na b\nb\n')


def test_templates_have_the_functions_that_they_are_written_for(tmp_path):
  source = (
    '{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}'
    "{{ m | tojson }}{% endgeneration %}{{ strftime_now('%Y')[:1] }}{{ tools is none }}{% endfor %}"
  )
  tokenizer = made(tmp_path, template=source)
  text = json.dumps({'role': 'user', 'content': 'é <a>'}, ensure_ascii=False) + '2True'
  found = tokenizer.encode_chat([{'role': 'user', 'content': 'é <a>'}, *USER])
  assert tokenizer.decode(found) == text


@pytest.mark.parametrize(
  ('chat', 'message'),
  [
    ([], 'a chat without messages'),
    ([*USER, 'a'], "message 1 is 'a'"),
    ([{'content': 'a'}], "message 0 does not have 'role'"),
    (
      [*USER, {'role': 'user', 'content': ['a']}],
      r"message 1 has content=\['a'\]; expected a text",
    ),
    ([{'role': 'user', 'content': '\ufdd0'}], r'U\+FDD0, which is not a character'),
  ],
)
def test_an_invalid_message_is_named(chat, message):
  with pytest.raises(MechjaxError, match=message):
    smollm2().encode_chat(chat)


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ("{{ raise_exception('roles must alternate') }}", 'refuses the chat: roles must alternate'),
    ('{% if %}', 'refuses the chat: Expected an expression'),
    ('{{ messages.append(1) }}', 'refuses the chat: .*append.* is unsafe'),
    ('{{ messages[7].content }}', 'refuses the chat'),
  ],
)
def test_a_template_that_refuses_says_so_in_its_own_words(tmp_path, source, message):
  tokenizer = made(tmp_path, template=source)
  assert tokenizer.encode('a b')
  with pytest.raises(MechjaxError, match=message) as e:
    tokenizer.encode_chat(USER)
  assert e.value.where == "roles ['user']"


def test_a_model_without_a_template_says_so(tmp_path):
  with pytest.raises(MechjaxError, match='does not have a chat template'):
    read(tmp_path, like_gpt2()).encode_chat(USER)
  with pytest.raises(WeightsError, match='chat_template=5; expected a text'):
    made(tmp_path, template=5)
