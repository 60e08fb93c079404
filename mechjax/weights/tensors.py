"""Tensors in files: the interface of all readers of weights, and memory-mapped files.

A loader should not depend on the format of a published model. It needs only the names and shapes of
the tensors, and the values of one tensor at a time; a `Reader` provides exactly this. Files are
mapped into memory, not read: a loader that needs a slice of a tensor touches only the pages of the
slice, and a host that holds an eighth of a model reads an eighth of the file.

Sharp edge: mapped pages count as memory of the process until they are released, so each `read`
first releases all pages that earlier calls touched. Arrays that were returned before stay valid;
their pages return from the page cache when they are accessed.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mechjax import errors

ALL = slice(None)
# XLA on CPU uses a host buffer without a copy if it is aligned to this many bytes.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Location and layout of one tensor in a file.

  Attributes:
    name: its name in the file.
    shape: slowest axis first.
    kind: storage type of its numbers, as the format names it: 'Q4_1', 'BF16', 'F32'.
    offset: of its first byte in the file.
    n_bytes: its size in the file, in bytes.
    together: number of rows in a chunk; reading one row of a chunk costs as much as reading all.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  offset: int
  n_bytes: int
  together: int = 1


class Reader(Protocol):
  """An open file, or several files of one checkpoint, whose headers have been checked.

  Attributes:
    path: of the file, index or directory that was opened.
    tensors: `TensorInfo` of each tensor, by name.
  """

  path: Path

  @property
  def tensors(self) -> Mapping[str, TensorInfo]:
    """The `TensorInfo` of every tensor, by name."""

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """Reads a tensor, or some of its rows; the array may share memory with the file, and is then read-only."""


def map_file(path: Path) -> bytes | mmap.mmap:
  """Maps a file into memory; its bytes are read when they are accessed.

  Raises:
    FileNotFoundError: there is no such file.
    WeightsError: it exists but cannot be opened: it is a directory, or there is no permission.
  """
  try:
    with path.open('rb') as f:
      # An empty file cannot be mapped, and the error of its parser is clearer.
      empty = os.fstat(f.fileno()).st_size == 0
      return b'' if empty else mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise
  except OSError as e:
    raise errors.WeightsError(f'{path} cannot be opened: {e.strerror}') from e


def release_pages(data: bytes | mmap.mmap) -> None:
  """Releases the pages that have been accessed, if the operating system supports it."""
  if isinstance(data, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
    data.madvise(mmap.MADV_DONTNEED)


def allocate_aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Allocates an uninitialised array that a CPU device can use without a copy."""
  n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(n_bytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + n_bytes].view(dtype).reshape(shape)


def info_of(reader: Reader, name: str) -> TensorInfo:
  """The description of a tensor; a WeightsError that lists the nearest names if there is no such tensor."""
  info = reader.tensors.get(name)
  if info is None:
    cause = 'the file has another architecture than the name map, or is one shard of several'
    where = f'{reader.path}, {len(reader.tensors)} tensors'
    raise errors.unknown(
      errors.WeightsError, 'tensor', name, reader.tensors, where=where, cause=cause
    )
  return info


def truncation_error(
  path: Path, what: str, offset: int, wanted: int, size: int
) -> errors.WeightsError:
  """The error for bytes that are missing at the end of a file."""
  return errors.WeightsError(
    f'{path} is truncated: {what} takes {wanted} bytes at offset {offset}, '
    f'the file has {size} bytes',
    cause='a download or copy that stopped early, or a damaged length in the header',
    hint='delete the file and download it again',
  )
