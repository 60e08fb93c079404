"""Tensors in files: what every reader of weights promises, and the mapped bytes it stands on.

A loader should not care in which format somebody published a model. All it needs is which tensors
there are, in which shapes, and the values of one of them when its turn comes; a `Reader` is that
and nothing more. The formats' files are mapped into memory, not read: a loader that wants a slice
of a tensor touches the pages of the slice, and a host that holds an eighth of a model reads an
eighth of the file.

Sharp edge: mapped pages count as memory of the process until they are given back, so each `read`
first gives back all pages that earlier ones touched. Arrays handed out before stay valid; their
pages come back from the page cache when they are looked at.
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
# XLA on CPU takes a host buffer as it is if it is aligned to this many bytes.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where one tensor lies.

  Attributes:
    name: its name in the file.
    shape: slowest axis first.
    kind: how its numbers are stored, in the words of the format: 'Q4_1', 'BF16', 'F32'.
    offset: of its first byte in the file.
    n_bytes: how many bytes it takes in the file.
    together: how many rows are stored as one, so that reading one costs as much as reading all.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  offset: int
  n_bytes: int
  together: int = 1


class Reader(Protocol):
  """An open file, or several that belong together, whose headers have been checked.

  Attributes:
    path: what was opened.
    tensors: name to `TensorInfo`.
  """

  path: Path

  @property
  def tensors(self) -> Mapping[str, TensorInfo]:
    """Every tensor by its name."""

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """One tensor, or some of its rows; may share memory with the file, and is then read-only."""


def map_file(path: Path) -> bytes | mmap.mmap:
  """The bytes of a file, not read before they are looked at.

  Raises:
    FileNotFoundError: there is no such file.
    WeightsError: it is there and cannot be opened: a directory, or no permission.
  """
  try:
    with path.open('rb') as f:
      # An empty file cannot be mapped, and whoever parses it says better what is wrong with it.
      empty = os.fstat(f.fileno()).st_size == 0
      return b'' if empty else mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise
  except OSError as e:
    raise errors.WeightsError(f'{path} cannot be opened: {e.strerror}') from e


def release_pages(data: bytes | mmap.mmap) -> None:
  """Lets go of the pages that have been looked at, where the operating system can."""
  if isinstance(data, mmap.mmap) and hasattr(mmap, 'MADV_DONTNEED'):
    data.madvise(mmap.MADV_DONTNEED)


def allocate_aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array to be filled, which a device of the CPU can take over without a copy."""
  n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(n_bytes + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start : start + n_bytes].view(dtype).reshape(shape)


def info_of(reader: Reader, name: str) -> TensorInfo:
  """A tensor's description; a WeightsError that names the nearest if there is none."""
  info = reader.tensors.get(name)
  if info is None:
    cause = 'the file is of another architecture than the name map, or is one part of several'
    where = f'{reader.path}, {len(reader.tensors)} tensors'
    raise errors.unknown(
      errors.WeightsError, 'tensor', name, reader.tensors, where=where, cause=cause
    )
  return info


def truncation_error(
  path: Path, what: str, offset: int, wanted: int, size: int
) -> errors.WeightsError:
  """The error for bytes that should be in the file and are not."""
  return errors.WeightsError(
    f'{path} is truncated: {what} takes {wanted} bytes at offset {offset}, '
    f'the file has {size} bytes',
    cause='a download or copy that stopped early, or a damaged length in the header',
    hint='delete the file and fetch it again',
  )
