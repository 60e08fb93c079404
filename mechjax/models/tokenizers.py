"""Tokenizers, built from the vocabulary that travels with the weights.

A tokenizer downloaded apart from its weights can be the wrong one, and nothing crashes when it is.
A published directory holds `tokenizer.json`, which the `tokenizers` library runs as it is. GGUF
files carry vocabulary, merges and special tokens in their header; of those, two kinds are read:
byte-level BPE, whose merging is done by the `tokenizers` library (what is decided here is how text
is cut before it, which the header only names: "smollm", "gpt-2"), and the scored pieces of
SentencePiece, which `greedy` merges.

A file's own settings for training batches (truncation, padding) are switched off: a text is never cut and never
padded by a setting that nobody sees.

Sharp edges: some vocabularies lack a few bytes (SmolLM2's six control characters and the
unassigned planes of Unicode), which the library drops without a word; here such a text is an
error. Special tokens written out in a text ("<|im_start|>") become those tokens, and decoding
writes them out again, so that any text survives the round trip. Tokenizers in the manner of SentencePiece put a space
before every text; it is taken off again where ids begin with `bos` and therefore are a whole text, and kept where they
are a piece of one, since there it is the space between two words. A pre-tokenizer whose name is not
in the table below is an error, because guessing it gives plausible tokens that the model never
saw.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mechjax import errors, extras
from mechjax.models.greedy import CONTROL, Greedy
from mechjax.weights import huggingface, vocabulary
from mechjax.weights.json_files import read_json
from mechjax.weights.values import Values

_MAX_UNUSED = 10_000  # ids without a token, beside as many as there are tokens; files have few


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back; use `from_gguf` or `from_huggingface` to make one.

  Attributes:
    split: a text to its ids, without special tokens around it.
    join: ids to the text that they add behind other text, special tokens written out.
    n_vocab: number of tokens; ids are below it.
    bos: id of the token that begins a sequence, or None if the model was trained without one.
    eos: id of the token that ends a text, or None.
    stop_ids: all ids after which a model has finished, `eos` among them: ends of a text, of a turn, of a message.
    closing: ids that the file puts behind every text; empty for nearly all models.
    lead: what `join` writes before a whole text and is no part of it: a space for tokenizers in the manner of
      SentencePiece, whose `split` puts one there.
  """

  split: Callable[[str], list[int]]
  join: Callable[[list[int]], str]
  n_vocab: int
  bos: int | None
  eos: int | None
  stop_ids: tuple[int, ...] = ()
  closing: tuple[int, ...] = ()
  lead: str = ''

  def encode(self, text: str, bos: bool | None = None) -> list[int]:
    """Token ids of a text.

    Args:
      text: any text.
      bos: whether `bos` leads them; None where the model expects it. A text that begins with that token, written
        out, gets no second one.

    Returns:
      The ids.

    Raises:
      MechjaxError: the vocabulary has no token for a byte of the text; `text` is none; `bos=True` without a `bos`.
    """
    _check_text(text)
    if bos and self.bos is None:
      raise errors.MechjaxError('bos=True, and this tokenizer begins a text with no token')
    ids = [*self.split(text), *self.closing]
    if self.bos is None or bos is False or ids[:1] == [self.bos]:
      return ids
    return [self.bos, *ids]

  def token(self, text: str) -> int:
    """The id of the one token that a text is, behind other text: ' Paris' is a word with its space.

    Args:
      text: a text that is one token. `join([token(text)])` is the text again.

    Returns:
      Its id, without any `bos`.

    Raises:
      MechjaxError: it is several tokens or none; the message has the pieces.
    """
    _check_text(text)
    ids = self._encode_continuation(text)
    pieces = [self.join([i]) for i in ids]
    if len(ids) != 1:
      raise errors.MechjaxError(
        f'{text!r} is {len(ids)} tokens: {pieces}',
        cause='a word without the space before it, or a rare one',
        hint="' Paris' with its space, or one of the pieces; tokens(text) gives all ids",
      )
    if pieces[0] != text:
      raise errors.MechjaxError(
        f'{text!r} becomes the token {pieces[0]!r}', cause='the vocabulary has no token for it'
      )
    return ids[0]

  def _encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that stands behind other text, and so gets no space that is not its own."""
    if self.lead:
      # A line break merges with nothing.
      before, both = self.split('\n'), self.split('\n' + text)
      if both[: len(before)] == before:
        return both[len(before) :]
    return self.split(text)

  def piece(self, i: int) -> str:
    """Text of one id, as it adds to the text before it; `bos` is written out."""
    return self.join([self._check_id(i)])

  def decode(self, ids: Iterable[int]) -> str:
    """Text of token ids; special tokens are written out, except a leading `bos`.

    Args:
      ids: a whole text, which begins with `bos`, or a piece of one, which keeps the space before its first word.

    Raises:
      MechjaxError: an id that is no integer, or that has no token.
    """
    ids = [self._check_id(i) for i in ids]
    if ids and ids[0] == self.bos:
      return self.join(ids[1:]).removeprefix(self.lead)
    return self.join(ids)

  def _check_id(self, i: Any) -> int:
    if isinstance(i, bool) or not hasattr(i, '__index__') or not 0 <= int(i) < self.n_vocab:
      raise errors.MechjaxError(
        f'{i!r} is no token id', where=f'the tokenizer has ids from 0 to {self.n_vocab - 1}'
      )
    return int(i)


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise errors.MechjaxError(
      f'one text is wanted, not {text!r:.100}',
      hint='tokenise texts one by one; model.generate takes several',
    )


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
  """Builds the tokenizer described by a GGUF header.

  Args:
    metadata: of a `GGUFFile`.

  Returns:
    The tokenizer.

  Raises:
    WeightsError: the header describes none, or one of a kind that is not known here.
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
      f'a tokenizer of kind {kind!r}, cut by {pre!r}, is not known',
      where='tokenizer.ggml.model and tokenizer.ggml.pre in the GGUF header',
      cause=f"known are byte-level BPE ('gpt2') with {sorted(_PRE_TOKENIZERS)}, and SentencePiece "
      "('llama') without add_space_prefix",
    )
  tokens = metadata['tokenizer.ggml.tokens']
  # Where the file is silent, SentencePiece's models begin with bos.
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
    directory: of the checkpoint; a `generation_config.json` in it names more ends of a text.
    described: its `config.json`, which names the end of a text.

  Returns:
    The tokenizer. What it puts before every text is `bos`, and what it puts behind, `closing`.

  Raises:
    WeightsError: there is no such file, it is damaged, or it puts more than one token before a text.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  backend = huggingface.tokenizer(directory)
  # Settings for the batches of a training, which would cut and pad texts here.
  backend.no_truncation()
  backend.no_padding()
  join = _make_join(backend)
  before, behind = _find_special_tokens(backend, directory)
  split = lambda text: backend.encode(text, add_special_tokens=False).ids  # noqa: E731
  n_vocab = _size(backend.get_vocab(), directory)
  stops = _read_stop_ids(Path(directory), described, n_vocab)
  return Tokenizer(
    split=split,
    join=join,
    n_vocab=n_vocab,
    bos=before[0] if before else None,
    eos=stops[0] if stops else None,
    stop_ids=stops,
    closing=behind,
    lead=_find_lead(join(split('a')), backend.decode(split('a'), skip_special_tokens=False)),
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
  """Ids to the text that they add behind other text: decoders take the first space off, and only that."""
  decode = lambda ids: backend.decode(ids, skip_special_tokens=False)  # noqa: E731
  other = backend.encode('a', add_special_tokens=False).ids
  text = decode(other)

  def join(ids: list[int]) -> str:
    both = decode([*other, *ids])
    return both[len(text) :] if both.startswith(text) else decode(ids)

  return join


def _find_lead(piece: str, whole: str) -> str:
  """What a decoder takes off a text at its beginning."""
  return piece.removesuffix(whole) if piece.endswith(whole) else ''


def _find_special_tokens(
  backend: Any, directory: str | os.PathLike[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The special tokens before and behind every text, as the file's post-processor puts them."""
  split = lambda text: backend.encode(text, add_special_tokens=False).ids  # noqa: E731
  text = next((t for t in ('a', *backend.get_vocab()) if split(t)), '')
  plain = split(text)
  whole = backend.encode(text).ids
  starts = range(len(whole) - len(plain) + 1)
  at = next((i for i in starts if plain and whole[i : i + len(plain)] == plain), len(whole))
  before, behind = tuple(whole[:at]), tuple(whole[at + len(plain) :])
  if len(before) > 1:
    raise errors.WeightsError(
      f'{directory}: tokenizer.json puts {len(before)} tokens before every text: {before}',
      cause='a model of another kind than those that continue a text',
    )
  return before, behind


def _read_stop_ids(directory: Path, described: Mapping[str, Any], n_vocab: int) -> tuple[int, ...]:
  """Every id that a model's files name as an end, the one of `config.json` first."""
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
    cause='a control character or an unassigned code point, for whose bytes there is no token',
    hint='remove or replace it',
  )


def _byte_letters() -> list[str]:
  """The letter that stands for each byte in a byte-level vocabulary.

  Printable bytes of Latin-1 stand for themselves, the others are numbered from U+0100 on.
  """
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = iter(range(256, 512))
  return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def _gpt2(pre: Any) -> list:
  return [pre.ByteLevel(add_prefix_space=False, use_regex=True)]


def _smollm(pre: Any) -> list:
  # Digits come one by one, so that numbers of any length are spelled alike.
  return [pre.Digits(individual_digits=True), *_gpt2(pre)]


# What a header calls the ends of a text, of a turn and of a message.
_GGUF_STOPS = ('eos', 'eot', 'eom')

_PRE_TOKENIZERS: dict[str, Callable[[Any], list]] = {'gpt-2': _gpt2, 'smollm': _smollm}
