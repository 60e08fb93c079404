"""Tokenizers, built from the vocabulary that travels with the weights.

A tokenizer downloaded apart from its weights can be the wrong one, and nothing crashes when it is.
A published directory holds `tokenizer.json`, which the `tokenizers` library runs as it is. GGUF
files carry vocabulary, merges and special tokens in their header; of those, two kinds are read:
byte-level BPE, whose merging is done by the `tokenizers` library (what is decided here is how text
is cut before it, which the header only names: "smollm", "gpt-2"), and the scored pieces of
SentencePiece, which `greedy` merges.

Sharp edges: some vocabularies lack a few bytes (SmolLM2's six control characters and the
unassigned planes of Unicode), which the library drops without a word; here such a text is an
error. Special tokens written out in a text ("<|im_start|>") become those tokens, and decoding
writes them out again, so that any text survives the round trip. A pre-tokenizer whose name is not
in the table below is an error, because guessing it gives plausible tokens that the model never
saw.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mechjax import errors, extras
from mechjax.models.greedy import CONTROL, Greedy
from mechjax.weights import huggingface, vocabulary
from mechjax.weights.values import Values


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back; use `from_gguf` or `from_huggingface` to make one.

  Attributes:
    split: a text to its ids, without `bos`.
    join: ids to their text, special tokens written out.
    n_vocab: number of tokens.
    bos: id of the token that begins a sequence, or None if the model was trained without one.
    eos: id of the token that ends a text, or None.
  """

  split: Callable[[str], list[int]]
  join: Callable[[list[int]], str]
  n_vocab: int
  bos: int | None
  eos: int | None

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, led by `bos` where the model expects it.

    Args:
      text: any text.

    Returns:
      The ids.

    Raises:
      MechjaxError: the vocabulary has no token for a byte of the text.
    """
    ids = self.split(text)
    return ids if self.bos is None else [self.bos, *ids]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of token ids; special tokens are written out, except a leading `bos`."""
    ids = [int(i) for i in ids]
    if ids and ids[0] == self.bos:
      ids = ids[1:]
    return self.join(ids)


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
  kind, pre = (header.word(f'tokenizer.ggml.{key}', '') for key in ('model', 'pre'))
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
  bos = (
    metadata['tokenizer.ggml.bos_token_id']
    if metadata.get('tokenizer.ggml.add_bos_token')
    else None
  )
  n_vocab = len(metadata['tokenizer.ggml.tokens'])
  return Tokenizer(split, join, n_vocab, bos, metadata.get('tokenizer.ggml.eos_token_id'))


def from_huggingface(directory: str | os.PathLike[str], described: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer in a directory's `tokenizer.json`.

  Args:
    directory: of the checkpoint.
    described: its `config.json`, which names the end of a text.

  Returns:
    The tokenizer. What it puts before every text is `bos`.

  Raises:
    WeightsError: there is no such file, or it is damaged.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  backend = huggingface.tokenizer(directory)
  before = backend.encode('').ids
  eos = described.get('eos_token_id')
  return Tokenizer(
    split=lambda text: backend.encode(text, add_special_tokens=False).ids,
    join=lambda ids: backend.decode(ids, skip_special_tokens=False),
    n_vocab=backend.get_vocab_size(),
    bos=before[0] if before else None,
    eos=eos[0] if isinstance(eos, list) else eos,
  )


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
    if text.encode().translate(None, writable):
      _refuse(text, writable)
    return backend.encode(text, add_special_tokens=False).ids

  return split, lambda ids: backend.decode(ids, skip_special_tokens=False)


def _refuse(text: str, writable: bytes) -> None:
  at, char = next((i, c) for i, c in enumerate(text) if c.encode().translate(None, writable))
  raise errors.MechjaxError(
    f'the vocabulary cannot write {char!r} (U+{ord(char):04X})',
    where=f'character {at} of the text',
    cause='a control character or an unassigned code point, for whose bytes there is no token',
    mend='remove or replace it',
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


_PRE_TOKENIZERS: dict[str, Callable[[Any], list]] = {'gpt-2': _gpt2, 'smollm': _smollm}
