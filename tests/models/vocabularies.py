"""Small tokenizers of every kind, as the files of a published model hold them."""

import json

import pytest
import tokenizers as library

from mechjax.models import tokenizers

BOS, EOS = 1, 2
WORDS = [
  '<unk>',
  '<s>',
  '</s>',
  *(f'<0x{i:02X}>' for i in range(256)),
  '▁',
  'a',
  'b',
  '▁a',
  '▁b',
  '▁Paris',
]
TEMPLATES = [None, '<s> $A', '$A </s>', '<s> $A </s>']


def like_llama(template=None):
  """Pieces that begin with their space, a space before every text, and a decoder that removes that space."""
  merges = [('▁', 'a'), ('▁', 'b')]
  model = library.models.BPE(
    dict(zip(WORDS, range(999))), merges, unk_token='<unk>', byte_fallback=True
  )
  made = library.Tokenizer(model)
  made.normalizer = library.normalizers.Sequence(
    [library.normalizers.Prepend('▁'), library.normalizers.Replace(' ', '▁')]
  )
  parts = library.decoders
  made.decoder = parts.Sequence(
    [parts.Replace('▁', ' '), parts.ByteFallback(), parts.Fuse(), parts.Strip(' ', 1, 0)]
  )
  return finished(made, template)


def like_t5(template=None):
  """Pieces with scores; the space before a text is part of the pre-tokenizer."""
  pieces = [(word, -float(i)) for i, word in enumerate(WORDS)]
  made = library.Tokenizer(library.models.Unigram(pieces, unk_id=0, byte_fallback=True))
  made.pre_tokenizer = library.pre_tokenizers.Metaspace()
  made.decoder = library.decoders.Sequence(
    [library.decoders.ByteFallback(), library.decoders.Metaspace()]
  )
  return finished(made, template)


def like_gpt2(template=None):
  letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
  vocab = {word: i for i, word in enumerate(['<unk>', '<s>', '</s>', *letters, 'Ġa', 'Ġb'])}
  made = library.Tokenizer(library.models.BPE(vocab, [('Ġ', 'a'), ('Ġ', 'b')]))
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  return finished(made, template)


KINDS = pytest.mark.parametrize('kind', [like_llama, like_t5, like_gpt2])


def finished(made, template):
  made.add_special_tokens(['<s>', '</s>'])
  if template:
    special = [('<s>', BOS), ('</s>', EOS)]
    made.post_processor = library.processors.TemplateProcessing(template, special_tokens=special)
  return made


def read(directory, made, described=(), **files):
  made.save(str(directory / 'tokenizer.json'))
  for name, content in files.items():
    (directory / f'{name}.json').write_text(json.dumps(content))
  return tokenizers.from_huggingface(directory, dict(described))
