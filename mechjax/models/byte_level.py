"""Byte-level BPE from the header of a GGUF file, merged by the `tokenizers` library.

The header holds the vocabulary and the merges, but only a name ("smollm", "qwen2") for the way in which text is split
beforehand; `PRE_TOKENIZERS` has these ways by name.

Sharp edges: a name that is not in the table is an error, because guessing it gives plausible tokens that the model
never saw. The library drops bytes without a token silently; here they are an error. Qwen's texts are brought into the
composed form of Unicode (NFC), as that tokenizer's publisher does, so decoding gives that form.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mechjax import errors, extras
from mechjax.models.greedy import CONTROL, USER_DEFINED
from mechjax.weights import vocabulary


def read(metadata: Mapping[str, Any], pre: str) -> tuple[Callable, Callable, Callable]:
  """Makes `split`, `split_special` and `join` of a `Tokenizer`.

  Args:
    metadata: of a `GGUFFile`.
    pre: a key of `PRE_TOKENIZERS`.

  Raises:
    WeightsError: tokens, kinds or merges are damaged.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  library = extras.require('tokenizers', 'models')
  vocab = {token: i for i, token in enumerate(vocabulary.tokens(metadata))}
  backend = library.Tokenizer(library.models.BPE(vocab, vocabulary.merges(metadata)))
  PRE_TOKENIZERS[pre](library, backend)
  backend.decoder = library.decoders.ByteLevel()
  for kind in (USER_DEFINED, CONTROL):
    found = [t for t in vocabulary.of_kind(metadata, kind) if t]
    backend.add_tokens(
      [library.AddedToken(t, special=kind == CONTROL, normalized=False) for t in found]
    )
  splits = make_splits(backend)
  writable = bytes(b for b, letter in enumerate(_byte_letters()) if letter in vocab)

  def check_first(split: Callable, text: str) -> list[int]:
    _check_writable(text, writable)
    return split(text)

  split, split_special = (functools.partial(check_first, one) for one in splits)
  return split, split_special, lambda ids: backend.decode(ids, skip_special_tokens=False)


def make_splits(backend: Any) -> tuple[Callable, Callable]:
  """Makes functions from a text to its ids: with special pieces as ordinary characters, and as their tokens.

  Args:
    backend: a `tokenizers.Tokenizer`.
  """
  lock = threading.Lock()  # for the setting of the library's object, which threads share

  def encode(text: str, special: bool) -> list[int]:
    with lock:
      backend.encode_special_tokens = not special
      return backend.encode(text, add_special_tokens=False).ids

  return functools.partial(encode, special=False), functools.partial(encode, special=True)


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


def _gpt2(library: Any, backend: Any, *before: Any) -> None:
  words = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.pre_tokenizer = library.pre_tokenizers.Sequence([*before, words])


def _smollm(library: Any, backend: Any) -> None:
  # Digits are split one by one, so that numbers of any length are tokenised alike.
  _gpt2(library, backend, library.pre_tokenizers.Digits(individual_digits=True))


def _qwen2(library: Any, backend: Any) -> None:
  # Contractions in any case; letters with one sign before them; single digits; signs with the line breaks after them;
  # line breaks; spaces, of which the last belongs to a following word.
  words = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r'|[^\r\n\p{L}\p{N}]?\p{L}+'
    r'|\p{N}'
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*'
    r'|\s*[\r\n]+'
    r'|\s+(?!\S)|\s+'
  )
  pre = library.pre_tokenizers
  backend.normalizer = library.normalizers.NFC()
  backend.pre_tokenizer = pre.Sequence(
    [
      pre.Split(library.Regex(words), behavior='isolated'),
      pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


# By the name in a header: functions that set how a text is split before it is merged.
PRE_TOKENIZERS: dict[str, Callable[[Any, Any], None]] = {
  'gpt-2': _gpt2,
  'qwen2': _qwen2,
  'smollm': _smollm,
}
