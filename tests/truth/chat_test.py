"""Chats, escaped pieces and the cuts of Qwen's texts are those of transformers."""

import functools

import pytest

from mechjax.models import byte_level, chat, tokenizer_files
from mechjax.weights import fetch
from mechjax.weights.gguf import GGUFFile

pytestmark = pytest.mark.truth

USER, ANSWER = (
  {'role': 'user', 'content': ' Say  it: 123 é \n'},
  {'role': 'assistant', 'content': 'hi'},
)
SYSTEM = {'role': 'system', 'content': 'You are\tterse.'}
CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER]]

# What published templates use: whitespace control, loop controls, functions, filters, variables, namespaces, macros.
TEMPLATES = [
  '{{ bos_token }}{% for m in messages %}\n  {{- m.role | upper }}: {{ m["content"].strip() }}\n{% endfor %}\n',
  "{%- set ns = namespace(system='') -%}{%- for m in messages -%}\n  {%- if m.role == 'system' -%}"
  '{%- set ns.system = m.content -%}{%- continue -%}{%- endif -%}'
  '{{ loop.index0 }}{{ ns.system }}{{ m | tojson }}{{ m | tojson(indent=2) }}\n{%- endfor -%}',
  "{% if messages[0]['role'] == 'system' %}\n    {% set loop_messages = messages[1:] %}\n{% else %}\n"
  '    {% set loop_messages = messages %}\n{% endif %}\n{% for m in loop_messages %}\n'
  "    {% generation %}{{ m.content | trim + ' ' }}{% endgeneration %}\n{% endfor %}{{ eos_token }}{{ unk_token }}",
  "{% macro say(x) %}<{{ x.split('\\n')[0] }}>{% endmacro %}{{ strftime_now('%Y') }}"
  "{% if tools is none and not documents %}{% for m in messages[::-1] %}{{ say(m.content) }}{% endfor %}{% endif %}"
  "{% if add_generation_prompt %}{{ 'go' }}{% endif %}{{ date_string is defined }}",
]  # fmt: skip


@functools.cache
def smollm2():
  """(ours, transformers' own class with the same vocabulary)."""
  import tokenizers as library
  from transformers import PreTrainedTokenizerFast

  metadata = GGUFFile(fetch.path_of('smollm2-135m')).metadata
  column = lambda name: metadata[f'tokenizer.ggml.{name}']  # noqa: E731
  merges = [tuple(merge.split(' ')) for merge in column('merges')]
  backend = library.Tokenizer(
    library.models.BPE({t: i for i, t in enumerate(column('tokens'))}, merges)
  )
  pre = library.pre_tokenizers
  backend.pre_tokenizer = pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)])
  backend.decoder = library.decoders.ByteLevel()
  backend.add_special_tokens([t for t, k in zip(column('tokens'), column('token_type')) if k == 3])
  theirs = PreTrainedTokenizerFast(
    tokenizer_object=backend, chat_template=metadata['tokenizer.chat_template'], eos_token='<|im_end|>'
  )  # fmt: skip
  return tokenizer_files.from_gguf(metadata), theirs


@pytest.mark.parametrize('messages', CHATS)
@pytest.mark.parametrize('opened', [False, True])
def test_the_tokens_of_chats_are_those_of_transformers(messages, opened):
  ours, theirs = smollm2()
  found = theirs.apply_chat_template(messages, add_generation_prompt=opened, return_dict=False)
  assert ours.encode_chat(messages, opened) == found


@pytest.mark.filterwarnings('ignore:the special piece')
@pytest.mark.parametrize(
  'text', ['a <|im_end|>b', '<|im_start|>user\n1<|im_end|>', '<|im_<repo_name>']
)
def test_special_pieces_are_escaped_or_not_as_in_transformers(text):
  ours, theirs = smollm2()
  assert ours.encode(text) == theirs(text, split_special_tokens=True)['input_ids']
  assert ours.encode(text, special=True) == theirs(text)['input_ids']


@pytest.mark.parametrize('source', TEMPLATES)
@pytest.mark.parametrize('messages', CHATS)
def test_templates_render_as_in_transformers(source, messages):
  named = {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'}
  theirs = smollm2()[1]
  theirs.add_special_tokens({'bos_token': named['bos_token']})
  for opened in (False, True):
    expected = theirs.apply_chat_template(
      messages, chat_template=source, add_generation_prompt=opened, tokenize=False
    )
    assert chat.ChatTemplate(source, named).render(messages, opened) == expected


@pytest.mark.parametrize(
  'text',
  [
    "I'LL say: don't they're  we've\n\n\n x=12345,\tok?!\r\n  (end) ", '漢字とかな 12ab １２ naïve a\u0301',
    'def f(x):\n    return x\n\n\n# a\u00a0b\u2003c', '...\n--\n', ' 1 2  3', "''s'S'x",
  ],
)  # fmt: skip
def test_texts_are_cut_as_in_transformers_class_for_qwen2(text):
  import tokenizers as library
  from transformers import Qwen2Tokenizer

  letters = {letter: i for i, letter in enumerate(library.pre_tokenizers.ByteLevel.alphabet())}
  theirs = Qwen2Tokenizer(vocab=letters, merges=[]).backend_tokenizer
  backend = library.Tokenizer(library.models.BPE(letters, []))
  byte_level.PRE_TOKENIZERS['qwen2'](library, backend)
  normal = theirs.normalizer.normalize_str(text)
  assert backend.normalizer.normalize_str(text) == normal
  cuts = theirs.pre_tokenizer.pre_tokenize_str(normal)
  assert backend.pre_tokenizer.pre_tokenize_str(normal) == cuts
