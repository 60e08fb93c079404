"""Tokens packed into contexts: the rows that a model reads, on disk, in any order.

Texts follow each other, each closed by the end-of-text token, and are cut into rows of one length that begin with the
beginning-of-text token, which models want in front and activations are not taken from. A row may hold the end of one
text and the start of the next, so no forward pass is spent on padding; what does not fill the last row is left out.

    contexts = pack(texts('books/'), encode, length=128, bos=1, eos=2, directory='out/tokens')
    contexts.tokens([7])                  int32 [1, 128]
    contexts.is_kept([[1, 504, 2]])          [[False, True, False]]: special tokens are dropped

The rows are one memory-mapped file and a description with its checksum, because whoever can jump to any row can stop
anywhere and go on (`buckets`), and because tokenising takes longer than reading.

Sharp edges: a text that is longer than a row goes on in the next without its beginning. `encode` adds no special
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
from typing import BinaryIO

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
    chosen: which rows of the file these are, int64 [N].
    special: ids whose activations are not wanted.
    digest: tells these contexts from all others.
  """

  file: np.ndarray
  chosen: np.ndarray
  special: tuple[int, ...]
  digest: str

  def __len__(self) -> int:
    return len(self.chosen)

  @property
  def length(self) -> int:
    """T, tokens of a context."""
    return self.file.shape[1]

  def tokens(self, numbers: np.ndarray | slice) -> np.ndarray:
    """Contexts by their numbers, int32 [n, T]."""
    return np.asarray(self.file[self.chosen[numbers]], np.int32)

  def is_kept(self, tokens: np.ndarray) -> np.ndarray:
    """Which tokens are not special, bool like `tokens`."""
    return ~np.isin(tokens, self.special)

  def count_kept(self) -> np.ndarray:
    """How many tokens of each context are kept, int64 [N]."""
    blocks = range(0, len(self), _BLOCK)
    parts = [self.is_kept(self.tokens(slice(i, i + _BLOCK))).sum(1) for i in blocks]
    return np.concatenate(parts)

  def split(self, every: int) -> tuple[Contexts, Contexts]:
    """Contexts to train on, and those that are held out: of each `every` the last.

    Raises:
      SAEError: nothing would be left of one of them.
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
    texts: in order.
    encode: text to token ids, without special ones.
    length: T, tokens of a context with its first.
    bos: what a context begins with; None for nothing.
    eos: what closes a text; None for nothing.
    special: more ids whose activations are not wanted.
    directory: where; it may hold the contexts of an earlier call, which are replaced when the new ones are there.
    max_contexts: largest number of contexts; texts beyond are not looked at.

  Returns:
    The contexts.

  Raises:
    SAEError: too few tokens for one context, a length or a number of none, or what are no token ids.
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
    (directory / ABOUT).unlink(missing_ok=True)  # no description is better than that of other rows
  ids = sorted({*special, *first} | ({eos} if eos is not None else set()))
  metadata = {'length': length, 'rows': n_rows, 'special': ids, 'sha256': digest}
  files.write_json(directory / ABOUT, metadata)
  return read(directory)


def read(directory: str | os.PathLike[str]) -> Contexts:
  """Contexts that were packed before.

  Raises:
    SAEError: there are none, or the file is not what was written.
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
      cause='a copy that stopped early',
      hint='pack the contexts again',
    )
  with (directory / ROWS).open('rb') as whole:
    found = hashlib.file_digest(whole, 'sha256').hexdigest()
  if found != digest:
    raise SAEError(
      f'{directory / ROWS} has another checksum than when it was written',
      cause='a rotten disk, or somebody else wrote there',
      hint='pack the contexts again',
    )
  file = np.memmap(directory / ROWS, '<i4', 'r', shape=shape)
  return Contexts(file, np.arange(shape[0]), special, digest)


def _write(file: BinaryIO, rows: Iterable[list[int]]) -> tuple[int, str]:
  """Returns how many they are, and the checksum of their bytes."""
  n_rows, digest = 0, hashlib.sha256()
  for row in rows:
    data = _ids(row).tobytes()
    digest.update(data)
    file.write(data)
    n_rows += 1
  return n_rows, digest.hexdigest()


def _ids(row: list[int]) -> np.ndarray:
  """A context as it is written; what would be cut or would count from the end of a vocabulary is refused."""
  ids = np.asarray(row)
  if ids.dtype.kind not in 'iu' or ids.min() < 0 or ids.max() >= 1 << 31:
    raise SAEError(
      f'token ids are integers from 0 on, not {ids.dtype} from {ids.min()} to {ids.max()}',
      cause='`encode`, `bos` or `eos` gives something else',
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
