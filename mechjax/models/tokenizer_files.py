"""Tokenizers, built from the vocabulary in the files of the weights.

A published directory holds `tokenizer.json`, which the `tokenizers` library runs as it is. GGUF
files hold vocabulary, merges and special tokens in their header; two kinds of these are read:
`byte_level` BPE and the scored pieces of SentencePiece, which `greedy` merges.

A file's own settings for training batches (truncation, padding) are switched off, so that no hidden setting truncates
or pads a text.

The token after which an assistant's message ends in the template of chats is a stop token, whether or not the files
name it as one.

Sharp edge: only tokens that the files flag as special are special: others that are added to a
vocabulary (runs of line breaks, "<tool_call>") are tokens wherever they stand in a text.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechjax import errors
from mechjax.models import byte_level, chat
from mechjax.models.greedy import CONTROL, SPACE, Greedy, match_any
from mechjax.models.tokenizers import Tokenizer
from mechjax.weights import huggingface, vocabulary
from mechjax.weights.json_files import read_bytes, read_json, read_sibling
from mechjax.weights.values import Values

_BYTE = re.compile('<0x[0-9A-F]{2}>')
# Names of the tokens for the end of a text, of a turn and of a message in a header.
_GGUF_STOPS = ('eos', 'eot', 'eom')
_MAX_UNUSED = 10_000  # ids without a token, in addition to the number of tokens; files have few


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
  """Builds the tokenizer described by a GGUF header.

  Args:
    metadata: of a `GGUFFile`.

  Returns:
    The tokenizer.

  Raises:
    WeightsError: the header does not describe a tokenizer, or describes one of an unknown kind.
    MissingExtraError: the `tokenizers` library is needed and not installed.
  """
  header = Values(metadata, 'the GGUF header')
  kind, pre = (header.string(f'tokenizer.ggml.{key}', '') for key in ('model', 'pre'))
  if kind == 'gpt2' and pre in byte_level.PRE_TOKENIZERS:
    split, split_special, join = byte_level.read(metadata, pre)
  elif kind == 'llama' and header.flag('tokenizer.ggml.add_space_prefix', True) is False:
    split, split_special, join = _sentence_pieces(metadata)
  else:
    raise errors.WeightsError(
      f'unknown tokenizer: kind {kind!r}, pre-tokenizer {pre!r}',
      where='tokenizer.ggml.model and tokenizer.ggml.pre in the GGUF header',
      cause=f"known: byte-level BPE ('gpt2') with {sorted(byte_level.PRE_TOKENIZERS)}, and SentencePiece "
      "('llama') without add_space_prefix",
    )
  tokens = metadata['tokenizer.ggml.tokens']
  # Without a setting in the file, texts of SentencePiece models begin with bos.
  adds = {'bos': kind == 'llama', 'eos': False}
  adds = {x: bool(metadata.get(f'tokenizer.ggml.add_{x}_token', adds[x])) for x in adds}
  ids = {x: header.ids(f'tokenizer.ggml.{x}_token_id', len(tokens)) for x in ('bos', *_GGUF_STOPS)}
  stops = [i for x in _GGUF_STOPS for i in ids[x]]
  made = Tokenizer(
    split,
    join,
    n_vocab=len(tokens),
    bos=ids['bos'][0] if adds['bos'] and ids['bos'] else None,
    eos=ids['eos'][0] if ids['eos'] else None,
    stop_ids=tuple(dict.fromkeys(stops)),
    closing=ids['eos'] if adds['eos'] else (),
    special={
      t.replace(SPACE, ' '): i for i, t in enumerate(vocabulary.of_kind(metadata, CONTROL)) if t
    },
    split_special=split_special,
  )
  named = {f'{x}_token': tokens[i] for x in ('bos', 'eos') for i in ids[x]}
  return _with_template(made, header.string('tokenizer.chat_template', ''), named)


def _with_template(made: Tokenizer, source: str, named: Mapping[str, str]) -> Tokenizer:
  """A tokenizer with a template of chats, whose end of turn is a stop token."""
  if not source:
    return made
  template = chat.ChatTemplate(source, named)
  end = template.find_end_of_turn(match_any(made.special))
  ends = [made.special[end]] if end else []
  stops = tuple(dict.fromkeys([*made.stop_ids, *ends]))
  return dataclasses.replace(made, template=template, stop_ids=stops)


def from_huggingface(directory: str | os.PathLike[str], described: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer in a directory's `tokenizer.json`.

  Args:
    directory: of the checkpoint; a `generation_config.json` in it may name more end-of-text tokens.
    described: its `config.json`, which names the end-of-text token.

  Returns:
    The tokenizer. The token that the file puts before every text is `bos`, and those after it are `closing`.

  Raises:
    WeightsError: there is no such file, it is damaged, or it puts more than one token before a text.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  backend = huggingface.tokenizer(directory)
  # Settings for training batches, which would truncate and pad texts here.
  backend.no_truncation()
  backend.no_padding()
  join = _make_join(backend)
  before, after = _find_special_tokens(backend, directory)
  special = {t.content: i for i, t in backend.get_added_tokens_decoder().items() if t.special}
  escaped, split_special = byte_level.make_splits(backend)
  split = _check_each(escaped, special)
  vocab = backend.get_vocab()
  n_vocab = _size(vocab, directory)
  stops = _read_stop_ids(Path(directory), described, n_vocab)
  made = Tokenizer(
    split=split,
    join=join,
    n_vocab=n_vocab,
    bos=before[0] if before else None,
    eos=stops[0] if stops else None,
    stop_ids=stops,
    closing=after,
    lead=_find_lead(join(split('a')), backend.decode(split('a'), skip_special_tokens=False)),
    byte_ids=frozenset(i for text, i in vocab.items() if _BYTE.fullmatch(text)),
    special=special,
    split_special=split_special,
  )
  return _with_template(made, *_read_template(Path(directory)))


def _read_template(directory: Path) -> tuple[str, dict[str, str]]:
  """The template of chats in a directory, or '', and the texts of special tokens by name."""
  settings = read_sibling(directory / 'tokenizer.json', 'tokenizer_config.json')
  found = settings.get('chat_template') or ''
  if isinstance(found, list):  # named templates
    found = {t.get('name'): t.get('template') for t in found if isinstance(t, dict)}.get(
      'default', ''
    )
  if (path := directory / 'chat_template.jinja').is_file():
    found = read_bytes(path).decode(errors='replace')
  if not isinstance(found, str):
    raise errors.WeightsError(
      f'{directory}: tokenizer_config.json has chat_template={found!r:.100}; expected a text',
      cause='a damaged file',
    )
  tokens = {
    k: v['content'] if isinstance(v, dict) and 'content' in v else v for k, v in settings.items()
  }
  return found, {k: v for k, v in tokens.items() if k.endswith('_token') and isinstance(v, str)}


def _check_each(split: Callable[[str], list[int]], special: Mapping[str, int]) -> Callable:
  """Makes a function that splits a text and checks that its special pieces are not tokens."""
  pieces = {i: piece for piece, i in special.items()}

  def check(text: str) -> list[int]:
    ids = split(text)
    # A vocabulary of whole words or of pieces with scores can hold a special piece as one of them.
    if not pieces.keys().isdisjoint(ids):
      _check_escaped([pieces[i] for i in ids if i in pieces], text)
    return ids

  return check


def _check_escaped(pieces: Sequence[str], text: str) -> None:
  """Raises if one of the special pieces that were found is written out in the text; others are unknown characters."""
  for piece in pieces:
    if piece in text:
      raise errors.MechjaxError(
        f'the special piece {piece!r} in a text cannot be ordinary characters with this tokenizer',
        where=f'character {text.index(piece)} of the text',
        hint='remove it, or pass special=True, which makes it the special token',
      )


def _size(vocab: Mapping[str, int], directory: str | os.PathLike[str]) -> int:
  """One more than the largest id."""
  last = max(vocab, key=lambda text: vocab[text], default='')
  n_vocab = 1 + vocab.get(last, -1)
  if n_vocab > 2 * len(vocab) + _MAX_UNUSED:
    raise errors.WeightsError(
      f'{directory}: tokenizer.json gives {last!r:.100} the id {n_vocab - 1}, and has {len(vocab)} tokens',
      cause='a damaged file',
    )
  return n_vocab


def _make_join(backend: Any) -> Callable[[list[int]], str]:
  """Makes `Tokenizer.join` by decoding ids after other text, since decoders remove only the first space."""
  decode = lambda ids: backend.decode(ids, skip_special_tokens=False)  # noqa: E731
  other = backend.encode('a', add_special_tokens=False).ids
  text = decode(other)

  def join(ids: list[int]) -> str:
    both = decode([*other, *ids])
    return both[len(text) :] if both.startswith(text) else decode(ids)

  return join


def _find_lead(piece: str, whole: str) -> str:
  """The beginning of a text that a decoder removes."""
  return piece.removesuffix(whole) if piece.endswith(whole) else ''


def _find_special_tokens(
  backend: Any, directory: str | os.PathLike[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The special tokens that the file's post-processor puts before and after every text."""
  split = lambda text: backend.encode(text, add_special_tokens=False).ids  # noqa: E731
  text = next((t for t in ('a', *backend.get_vocab()) if split(t)), '')
  plain = split(text)
  whole = backend.encode(text).ids
  starts = range(len(whole) - len(plain) + 1)
  at = next((i for i in starts if plain and whole[i : i + len(plain)] == plain), len(whole))
  before, after = tuple(whole[:at]), tuple(whole[at + len(plain) :])
  if len(before) > 1:
    raise errors.WeightsError(
      f'{directory}: tokenizer.json puts {len(before)} tokens before every text: {before}',
      cause='the model is not one that continues a text',
    )
  return before, after


def _read_stop_ids(directory: Path, described: Mapping[str, Any], n_vocab: int) -> tuple[int, ...]:
  """Every end-of-text id in a model's files, that of `config.json` first."""
  inner = described.get('text_config')
  path = directory / 'generation_config.json'
  sources = {
    'config.json': described,
    'the text_config of config.json': inner if isinstance(inner, Mapping) else {},
    path.name: read_json(path) if path.is_file() else {},
  }
  sizes = [x.get('vocab_size') for x in sources.values()]
  limit = max(n_vocab, *(size for size in sizes if isinstance(size, int)), 0)
  found = [Values(x, name).ids('eos_token_id', limit) for name, x in sources.items()]
  return tuple(dict.fromkeys(i for ids in found for i in ids))


def _sentence_pieces(metadata: Mapping[str, Any]) -> tuple[Callable, Callable, Callable]:
  tokens = vocabulary.tokens(metadata)
  greedy = Greedy(tokens, vocabulary.scores(metadata), vocabulary.kinds(metadata))
  return greedy.encode, functools.partial(greedy.encode, special=True), greedy.decode
