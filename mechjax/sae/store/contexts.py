"""Tokens packed into contexts: rows of tokens on disk, with random access.

Texts are concatenated, each followed by the end-of-text token, and cut into rows of one length. Each row begins with
the beginning-of-text token, which models expect and whose activations are not used. A row can contain the end of one
text and the start of the next, so no forward pass is spent on padding; tokens that do not fill the last row are
dropped.

    contexts = pack(texts('books/'), encode, length=128, bos=1, eos=2, directory='out/tokens')
    contexts.tokens([7])                  int32 [1, 128]
    contexts.is_kept([[1, 504, 2]])       [[False, True, False]]: special tokens are dropped

The rows are one memory-mapped file and a description with its checksum: random access allows a run to stop and resume
anywhere (`buckets`), and tokenising takes longer than reading.

Sharp edges: a text longer than a row continues in the next row, without its beginning. `encode` must not add special
tokens itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from mechjax import files
from mechjax.errors import SAEError

ROWS, ABOUT = 'contexts.bin', 'contexts.json'
_BLOCK = 1 << 16
Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Contexts:
  """Rows of tokens.

  Attributes:
    file: token ids, int32 [rows of the file, T].
    chosen: indices of these contexts in the file, int64 [N].
    special: token ids whose activations are not used.
    digest: identifier that differs from that of any other contexts.
  """

  file: np.ndarray
  chosen: np.ndarray
  special: tuple[int, ...]
  digest: str

  def __len__(self) -> int:
    return len(self.chosen)

  @property
  def length(self) -> int:
    """T, tokens per context."""
    return self.file.shape[1]

  def tokens(self, numbers: np.ndarray | slice) -> np.ndarray:
    """Tokens of contexts by their numbers, int32 [n, T]."""
    return np.asarray(self.file[self.chosen[numbers]], np.int32)

  def is_kept(self, tokens: np.ndarray) -> np.ndarray:
    """Mask of the tokens that are not special, bool, with the shape of `tokens`."""
    return ~np.isin(tokens, self.special)

  def count_kept(self) -> np.ndarray:
    """Number of tokens of each context that are not special, int64 [N]."""
    blocks = range(0, len(self), _BLOCK)
    parts = [self.is_kept(self.tokens(slice(i, i + _BLOCK))).sum(1) for i in blocks]
    return np.concatenate(parts)

  def split(self, every: int) -> tuple[Contexts, Contexts]:
    """Splits into training contexts and held-out contexts, the last of each `every`.

    Raises:
      SAEError: one of the two would be empty.
    """
    out = np.arange(len(self)) % every == every - 1 if every > 1 else np.ones(len(self), bool)
    if out.all() or not out.any():
      raise SAEError(f'of {len(self)} contexts every {every}th is to be held out')
    kept, held = (
      dataclasses.replace(self, chosen=self.chosen[which], digest=f'{self.digest} {name} {every}')
      for name, which in (('without every', ~out), ('every', out))
    )
    return kept, held


def pack(
  texts: Iterable[str],
  encode: Encode,
  *,
  length: int,
  bos: int | None,
  eos: int | None,
  special: Iterable[int] = (),
  directory: str | os.PathLike[str],
  max_contexts: int | None = None,
) -> Contexts:
  """Writes the contexts of some texts.

  Args:
    texts: texts in order.
    encode: function from a text to token ids, without special tokens.
    length: T, tokens per context including the first.
    bos: first token of a context; None to omit it.
    eos: token after each text; None to omit it.
    special: further token ids whose activations are not used.
    directory: output directory; contexts of an earlier call in it are replaced once the new ones are complete.
    max_contexts: maximum number of contexts; further texts are not read.

  Returns:
    The contexts.

  Raises:
    SAEError: too few tokens for one context, a length or a maximum that allows none, or invalid token ids.
  """
  first = [] if bos is None else [bos]
  if length <= len(first) or (max_contexts is not None and max_contexts < 1):
    raise SAEError(
      f'contexts of {length} tokens, {len(first)} of which begin them, and at most {max_contexts} contexts'
    )
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  files.sweep(directory, {ROWS, ABOUT})
  rows = itertools.islice(_rows(texts, encode, first, eos, length), max_contexts)
  with files.whole(directory / ROWS) as file:
    n_rows, digest = _write(file, rows)
    if not n_rows:
      raise SAEError(f'the texts have fewer than the {length - len(first)} tokens of one context')
    # A missing description is better than one of other rows.
    (directory / ABOUT).unlink(missing_ok=True)
  ids = sorted({*special, *first} | ({eos} if eos is not None else set()))
  metadata = {'length': length, 'rows': n_rows, 'special': ids, 'sha256': digest}
  files.write_json(directory / ABOUT, metadata)
  return read(directory)


def read(directory: str | os.PathLike[str]) -> Contexts:
  """Reads contexts that were packed before.

  Raises:
    SAEError: there are no contexts, or the file differs from the one that was written.
  """
  directory = Path(directory)
  try:
    metadata = json.loads((directory / ABOUT).read_text())
    size = (directory / ROWS).stat().st_size
    shape = metadata['rows'], metadata['length']
    special, digest = tuple(map(int, metadata['special'])), str(metadata['sha256'])
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise SAEError(
      f'{directory} holds no contexts: {type(e).__name__}: {e}', hint='pack them again'
    ) from e
  if size != 4 * shape[0] * shape[1]:
    raise SAEError(
      f'{directory / ROWS} has {size} bytes and should have {4 * shape[0] * shape[1]}',
      cause='an incomplete copy',
      hint='pack the contexts again',
    )
  with (directory / ROWS).open('rb') as whole:
    found = hashlib.file_digest(whole, 'sha256').hexdigest()
  if found != digest:
    raise SAEError(
      f'{directory / ROWS} has a different checksum than when it was written',
      cause='a damaged disk, or another program wrote to the file',
      hint='pack the contexts again',
    )
  file = np.memmap(directory / ROWS, '<i4', 'r', shape=shape)
  return Contexts(file, np.arange(shape[0]), special, digest)


class SpecialTokens(Protocol):
  """The part of a tokenizer that marks the ends of texts."""

  @property
  def bos(self) -> int | None:
    """Id of the token before a text."""

  @property
  def eos(self) -> int | None:
    """Id of the token after a text."""

  def piece(self, token: int) -> Any:
    """The token of an id.

    Raises:
      MechjaxError: the id is not a token.
    """


def first_token(tokenizer: SpecialTokens, wanted: int | None = None) -> int | None:
  """First token of a context: the given one, or the tokenizer's BOS token, or else its EOS token.

  The first token of a context attracts attention from all others, and its activations have another norm than theirs;
  it should be a token that is not trained on.

  Raises:
    MechjaxError: the given id is not a token.
  """
  if wanted is not None:
    tokenizer.piece(wanted)
  return next((i for i in (wanted, tokenizer.bos, tokenizer.eos) if i is not None), None)


def _write(file: BinaryIO, rows: Iterable[list[int]]) -> tuple[int, str]:
  """Writes rows; returns their number and the checksum of their bytes."""
  n_rows, digest = 0, hashlib.sha256()
  for row in rows:
    data = _ids(row).tobytes()
    digest.update(data)
    file.write(data)
    n_rows += 1
  return n_rows, digest.hexdigest()


def _ids(row: list[int]) -> np.ndarray:
  """Token ids of a context as int32; raises an error for negative ids and ids that do not fit."""
  ids = np.asarray(row)
  if ids.dtype.kind not in 'iu' or ids.min() < 0 or ids.max() >= 1 << 31:
    raise SAEError(
      f'token ids are integers from 0 on, not {ids.dtype} from {ids.min()} to {ids.max()}',
      cause='`encode`, `bos` or `eos` has other values',
    )
  return ids.astype('<i4')


def _rows(
  texts: Iterable[str], encode: Encode, first: list[int], eos: int | None, length: int
) -> Iterator[list[int]]:
  waiting: list[int] = []
  room = length - len(first)
  for text in texts:
    waiting.extend(encode(text))
    if eos is not None:
      waiting.append(eos)
    n_full = len(waiting) // room
    for i in range(n_full):
      yield first + waiting[i * room : (i + 1) * room]
    del waiting[: n_full * room]
