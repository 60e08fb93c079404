"""Tokenizers, built from the vocabulary in the files of the weights.

A tokenizer downloaded apart from its weights can be the wrong one, and nothing crashes if it is.
A published directory holds `tokenizer.json`, which the `tokenizers` library runs as it is. GGUF
files hold vocabulary, merges and special tokens in their header; two kinds of these are read:
byte-level BPE, which the `tokenizers` library merges (this module decides how text is split
beforehand, for which the header has only a name: "smollm", "gpt-2"), and the scored pieces of
SentencePiece, which `greedy` merges.

A file's own settings for training batches (truncation, padding) are switched off, so that no hidden setting truncates
or pads a text.

Sharp edges: some vocabularies lack a few bytes (SmolLM2's six control characters and the
unassigned planes of Unicode), which the library drops silently; here such a text is an error.
Special tokens written out in a text ("<|im_start|>") become those tokens, and decoding writes them
out again, so that any text survives the round trip. Tokenizers in the manner of SentencePiece put a space
before every text; decoding removes it from ids that begin with `bos` and are therefore a whole text, and keeps it in
ids that are a piece of a text, where it is the space between two words. A pre-tokenizer whose name is
not in the table below is an error, because guessing it gives plausible tokens that the model never
saw.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mechjax import errors, extras
from mechjax.models.greedy import CONTROL, Greedy
from mechjax.models.streaming import Stream
from mechjax.weights import huggingface, vocabulary
from mechjax.weights.json_files import read_json
from mechjax.weights.values import Values

_BYTE = re.compile('<0x[0-9A-F]{2}>')
_MAX_UNUSED = 10_000  # ids without a token, in addition to the number of tokens; files have few


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back; use `from_gguf` or `from_huggingface` to make one.

  Attributes:
    split: converts a text to its ids, without special tokens around it.
    join: converts ids to the text that they append to other text, with special tokens written out.
    n_vocab: number of tokens; ids are below it.
    bos: id of the token that begins a sequence, or None if the model was trained without one.
    eos: id of the token that ends a text, or None.
    stop_ids: all ids after which a model has finished, including `eos`: ends of a text, of a turn, of a message.
    closing: ids that the file appends to every text; empty for nearly all models.
    lead: text that `join` adds before a whole text: a space for tokenizers in the manner of SentencePiece, whose
      `split` adds one there.
    byte_ids: tokens of a single byte whose text depends on the bytes around them.
  """

  split: Callable[[str], list[int]]
  join: Callable[[list[int]], str]
  n_vocab: int
  bos: int | None
  eos: int | None
  stop_ids: tuple[int, ...] = ()
  closing: tuple[int, ...] = ()
  lead: str = ''
  byte_ids: frozenset[int] = frozenset()

  def encode(self, text: str, bos: bool | None = None) -> list[int]:
    """Token ids of a text.

    Args:
      text: any text.
      bos: whether `bos` comes first; None adds it if the model expects it. A text that begins with that token,
        written out, does not get a second one.

    Returns:
      The ids.

    Raises:
      MechjaxError: the vocabulary lacks a byte of the text; `text` is not a string; `bos=True` without a `bos`.
    """
    _check_text(text)
    if bos and self.bos is None:
      raise errors.MechjaxError('bos=True, but this tokenizer does not begin a text with a token')
    ids = [*self.split(text), *self.closing]
    if self.bos is None or bos is False or ids[:1] == [self.bos]:
      return ids
    return [self.bos, *ids]

  def token(self, text: str) -> int:
    """The id of a text that is one token after other text, such as ' Paris', a word with its space.

    Args:
      text: a text that is one token. `join([token(text)])` is the text again.

    Returns:
      Its id, without `bos`.

    Raises:
      MechjaxError: the text is several tokens or none; the message lists the pieces.
    """
    _check_text(text)
    ids = self._encode_continuation(text)
    pieces = [self.join([i]) for i in ids]
    if len(ids) != 1:
      raise errors.MechjaxError(
        f'{text!r} is {len(ids)} tokens: {pieces}',
        cause='a word without the space before it, or a rare one',
        hint="use ' Paris' with its space, or one of the pieces; tokens(text) gives all ids",
      )
    if pieces[0] != text:
      raise errors.MechjaxError(
        f'{text!r} becomes the token {pieces[0]!r}', cause='the vocabulary has no token for it'
      )
    return ids[0]

  def _encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows other text, without an added space."""
    if self.lead:
      # A line break does not merge with other characters.
      before, both = self.split('\n'), self.split('\n' + text)
      if both[: len(before)] == before:
        return both[len(before) :]
    return self.split(text)

  def piece(self, i: int) -> str:
    """The text that one id appends to the text before it; `bos` is written out."""
    return self.join([self.check_id(i)])

  def decode(self, ids: Iterable[int]) -> str:
    """Text of token ids; special tokens are written out, except a leading `bos`.

    Args:
      ids: a whole text, which begins with `bos`, or a piece of one, which keeps the space before its first word.

    Raises:
      MechjaxError: an id that is not an integer, or that does not have a token.
    """
    ids = [self.check_id(i) for i in ids]
    if ids and ids[0] == self.bos:
      return self.join(ids[1:]).removeprefix(self.lead)
    return self.join(ids)

  def stream(self) -> Stream:
    """A decoder of ids that arrive one at a time, whose pieces of text, joined, are those of `decode`."""
    return Stream(self)

  def check_id(self, i: Any) -> int:
    """Checks one token id, and returns it as an int.

    Raises:
      MechjaxError: it is not an integer, or does not have a token.
    """
    if isinstance(i, bool) or not hasattr(i, '__index__') or not 0 <= int(i) < self.n_vocab:
      raise errors.MechjaxError(
        f'{i!r} is not a token id', where=f'the tokenizer has ids from 0 to {self.n_vocab - 1}'
      )
    return int(i)


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise errors.MechjaxError(
      f'expected one text, not {text!r:.100}',
      hint='tokenise texts one by one; model.generate takes several',
    )


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
  if kind == 'gpt2' and pre in _PRE_TOKENIZERS:
    split, join = _byte_level(metadata, _PRE_TOKENIZERS[pre])
  elif kind == 'llama' and header.flag('tokenizer.ggml.add_space_prefix', True) is False:
    split, join = _sentence_pieces(metadata)
  else:
    raise errors.WeightsError(
      f'unknown tokenizer: kind {kind!r}, pre-tokenizer {pre!r}',
      where='tokenizer.ggml.model and tokenizer.ggml.pre in the GGUF header',
      cause=f"known: byte-level BPE ('gpt2') with {sorted(_PRE_TOKENIZERS)}, and SentencePiece "
      "('llama') without add_space_prefix",
    )
  tokens = metadata['tokenizer.ggml.tokens']
  # Without a setting in the file, texts of SentencePiece models begin with bos.
  adds = {'bos': kind == 'llama', 'eos': False}
  adds = {x: bool(metadata.get(f'tokenizer.ggml.add_{x}_token', adds[x])) for x in adds}
  ids = {x: header.ids(f'tokenizer.ggml.{x}_token_id', len(tokens)) for x in ('bos', *_GGUF_STOPS)}
  stops = [i for x in _GGUF_STOPS for i in ids[x]]
  return Tokenizer(
    split,
    join,
    n_vocab=len(tokens),
    bos=ids['bos'][0] if adds['bos'] and ids['bos'] else None,
    eos=ids['eos'][0] if ids['eos'] else None,
    stop_ids=tuple(dict.fromkeys(stops)),
    closing=ids['eos'] if adds['eos'] else (),
  )


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
  split = lambda text: backend.encode(text, add_special_tokens=False).ids  # noqa: E731
  vocab = backend.get_vocab()
  n_vocab = _size(vocab, directory)
  stops = _read_stop_ids(Path(directory), described, n_vocab)
  return Tokenizer(
    split=split,
    join=join,
    n_vocab=n_vocab,
    bos=before[0] if before else None,
    eos=stops[0] if stops else None,
    stop_ids=stops,
    closing=after,
    lead=_find_lead(join(split('a')), backend.decode(split('a'), skip_special_tokens=False)),
    byte_ids=frozenset(i for text, i in vocab.items() if _BYTE.fullmatch(text)),
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


def _sentence_pieces(metadata: Mapping[str, Any]) -> tuple[Callable, Callable]:
  tokens = vocabulary.tokens(metadata)
  greedy = Greedy(tokens, vocabulary.scores(metadata), vocabulary.kinds(metadata))
  return greedy.encode, greedy.decode


def _byte_level(metadata: Mapping[str, Any], cut: Callable) -> tuple[Callable, Callable]:
  library = extras.require('tokenizers', 'models')
  tokens = vocabulary.tokens(metadata)
  vocab = {token: i for i, token in enumerate(tokens)}
  backend = library.Tokenizer(library.models.BPE(vocab, vocabulary.merges(metadata)))
  backend.pre_tokenizer = library.pre_tokenizers.Sequence(cut(library.pre_tokenizers))
  backend.decoder = library.decoders.ByteLevel()
  kinds = vocabulary.kinds(metadata)
  backend.add_special_tokens([t for t, k in zip(tokens, kinds) if k == CONTROL])
  writable = bytes(b for b, letter in enumerate(_byte_letters()) if letter in vocab)

  def split(text: str) -> list[int]:
    _check_writable(text, writable)
    return backend.encode(text, add_special_tokens=False).ids

  return split, lambda ids: backend.decode(ids, skip_special_tokens=False)


def _check_writable(text: str, writable: bytes) -> None:
  if not text.encode().translate(None, writable):
    return
  at, char = next((i, c) for i, c in enumerate(text) if c.encode().translate(None, writable))
  raise errors.MechjaxError(
    f'the vocabulary cannot write {char!r} (U+{ord(char):04X})',
    where=f'character {at} of the text',
    cause='a control character or an unassigned code point, whose bytes have no token',
    hint='remove or replace it',
  )


def _byte_letters() -> list[str]:
  """The character that represents each byte in a byte-level vocabulary.

  Printable bytes of Latin-1 represent themselves; the others are numbered from U+0100 on.
  """
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = iter(range(256, 512))
  return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def _gpt2(pre: Any) -> list:
  return [pre.ByteLevel(add_prefix_space=False, use_regex=True)]


def _smollm(pre: Any) -> list:
  # Digits are split one by one, so that numbers of any length are tokenised alike.
  return [pre.Digits(individual_digits=True), *_gpt2(pre)]


# Names of the tokens for the end of a text, of a turn and of a message in a header.
_GGUF_STOPS = ('eos', 'eot', 'eom')

_PRE_TOKENIZERS: dict[str, Callable[[Any], list]] = {'gpt-2': _gpt2, 'smollm': _smollm}
