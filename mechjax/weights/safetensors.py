"""Safetensors files, read tensor by tensor, with a complete check of the header.

The format was made so that weights can be shared without running foreign code: a length, a JSON
header, numbers. Here the header is compared with the size of the file before a byte of tensors is
read: every interval has the size of its shape and dtype, and together they fill the file without
gap or overlap, so that a damaged header is an error and never a model.

    file = SafetensorsFile('model.safetensors')
    file.tensors['model.norm.weight'].shape     (576,)
    file.read('model.norm.weight')              in the stored dtype, without a copy

Checkpoints of other kinds (`.bin`, `.pt`, `.pth`, `.ckpt`) are pickles. Reading one runs any
program that its author put inside, so mechjax never does, and the error says how to convert it.

Sharp edge: arrays are read-only views of the file, in the dtype of the file.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mechjax import errors
from mechjax.weights.json_files import parse_json
from mechjax.weights.tensors import (
  ALL,
  TensorInfo,
  info_of,
  map_file,
  release_pages,
  truncation_error,
)

DTYPES: dict[str, np.dtype] = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
# The limit of the format; also a bound on the memory that parsing JSON can allocate.
_MAX_HEADER = 100_000_000
_MAX_AXES = 32
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


class SafetensorsFile:
  """An open file whose header has been checked.

  Attributes:
    path: of the file.
    metadata: the strings in the header.
    tensors: `TensorInfo` of each tensor, by name, in the order of their bytes.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens a file and checks its header.

    Args:
      path: of the file.

    Raises:
      WeightsError: it is not a safetensors file, is truncated, or its header is damaged.
      FileNotFoundError: there is no such file.
    """
    self.path = Path(path)
    check_not_pickle(self.path)
    self._bytes = map_file(self.path)
    start, header = _header(self.path, self._bytes)
    self.metadata: dict[str, str] = _metadata(self.path, header.pop('__metadata__', {}))
    infos = [_info(self.path, name, entry, start) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.n_bytes))
    _check_filled(self.path, infos, start, len(self._bytes))
    self.tensors = {info.name: info for info in infos}

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """Reads a tensor.

    Args:
      name: of the tensor.
      rows: slice of its first axis.

    Returns:
      A read-only array in the stored shape and dtype, which shares memory with the file.

    Raises:
      WeightsError: there is no such tensor.
    """
    info = info_of(self, name)
    release_pages(self._bytes)
    whole: np.ndarray = np.ndarray(info.shape, DTYPES[info.kind], self._bytes, info.offset)
    return whole if rows == ALL else whole[rows]


def check_not_pickle(path: Path) -> None:
  """Raises a WeightsError if a path names a file that only unpickling can read."""
  if path.suffix in PICKLES:
    raise errors.WeightsError(
      f'{path} is a pickle, which mechjax never reads',
      cause='unpickling runs any program that the author of the file put inside',
      hint='if you trust the file, load the model in PyTorch and call '
      'model.save_pretrained(directory, safe_serialization=True); many models are published as '
      'model.safetensors too',
    )


def _header(path: Path, data: Any) -> tuple[int, dict[str, Any]]:
  """Offset of the first tensor, and the header as JSON."""
  if len(data) < 8:
    raise truncation_error(path, 'the length of the header', 0, 8, len(data))
  (length,) = struct.unpack('<Q', data[:8])
  if length > _MAX_HEADER:
    raise errors.WeightsError(
      f'{path} is not a safetensors file: its header would take {length} bytes, but the format '
      f'allows {_MAX_HEADER}',
      where='offset 0',
    )
  if 8 + length > len(data):
    raise truncation_error(path, 'the header', 8, length, len(data))
  return 8 + length, parse_json(path, data[8 : 8 + length], 'the header')


def _metadata(path: Path, found: Any) -> dict[str, str]:
  if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
    raise errors.WeightsError(f'{path}: __metadata__ is not an object of strings')
  return found


def _info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
  """Checks one entry of the header, without comparing it with others."""
  if not isinstance(entry, dict) or sorted(entry) != ['data_offsets', 'dtype', 'shape']:
    raise _header_error(path, name, f'is described by {entry!r:.200}')
  kind, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(kind, str) or kind not in DTYPES:
    raise _header_error(path, name, f'has dtype {kind!r:.50}; known are {sorted(DTYPES)}')
  if not _is_naturals(shape) or len(shape) > _MAX_AXES:
    raise _header_error(path, name, f'has shape {shape!r:.200}')
  if not _is_naturals(offsets) or len(offsets) != 2:
    raise _header_error(path, name, f'has data_offsets {offsets!r:.200}')
  n_bytes = math.prod(shape) * DTYPES[kind].itemsize
  if offsets[1] - offsets[0] != n_bytes:
    between = f'between offsets {offsets[0]} and {offsets[1]}'
    raise _header_error(
      path, name, f'({kind}, shape {shape}) takes {n_bytes} bytes, not the bytes {between}'
    )
  return TensorInfo(name, tuple(shape), kind, start + offsets[0], n_bytes)


def _is_naturals(numbers: Any) -> bool:
  return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)


def _check_filled(path: Path, infos: list[TensorInfo], at: int, size: int) -> None:
  """Checks that tensors follow each other without gap or overlap up to the end of the file."""
  for info in infos:
    if info.offset != at:
      raise _header_error(path, info.name, f'begins at offset {info.offset}, expected {at}')
    if info.n_bytes > size - at:
      what = f'tensor {info.name!r} ({info.kind}, shape {info.shape})'
      raise truncation_error(path, what, at, info.n_bytes, size)
    at += info.n_bytes
  if at != size:
    raise errors.WeightsError(
      f'{path}: the last tensor ends at offset {at}, the file has {size} bytes',
      cause='the header belongs to another file, or data was appended',
    )


def _header_error(path: Path, name: str, what: str) -> errors.WeightsError:
  return errors.WeightsError(f'{path}: tensor {name!r} {what}', cause='the header is damaged')
