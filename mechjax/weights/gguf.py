"""GGUF files, read tensor by tensor, with every length and offset checked.

Quantised checkpoints are the weights that are easiest to obtain, and a damaged one rarely crashes:
a truncated file reads as zeros, a wrong offset as noise, and the paper is written before the damage
is found. Hence the header is parsed here, with every length and offset compared with the size of
the file before a byte is allocated for it, and each error names the file, the offset, the tensor
and the expected value. Tensors must be where the format puts them: one after the other in the order
of the header, each at the next multiple of the alignment, up to the end of the file, so that an
overlap or a gap is an error. The arithmetic of the quantisations is left to the `gguf` package,
which the inventors of the format maintain.

    file = GGUFFile('model.gguf')
    file.metadata['llama.block_count']      30
    file.read('blk.0.attn_q.weight')        float32 [576, 576], dequantised

Sharp edges: shapes are given slowest axis first, as in NumPy (GGUF writes them in reverse), so a
linear layer is [out, in]. The file stays memory mapped as long as the object exists. Only
little-endian files of versions 2 and 3 are read, the only ones in use.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import errors, extras
from mechjax.weights.tensors import (
  ALL,
  TensorInfo,
  info_of,
  map_file,
  release_pages,
  truncation_error,
)

MAGIC = b'GGUF'
VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4
_MAX_NESTING = 8
_PLAIN = {'F32': '<f4', 'F64': '<f8'}
_CHUNK = 1 << 18  # numbers that are dequantised at a time
_STRING, _ARRAY = 8, 9
_SCALARS = {
  0: '<u1', 1: '<i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4',
  6: '<f4', 7: '?', 10: '<u8', 11: '<i8', 12: '<f8',
}  # fmt: skip


class GGUFFile:
  """An open GGUF file whose header has been checked against the file's size.

  Attributes:
    path: of the file.
    metadata: the key-value pairs of the header; arrays of numbers are NumPy arrays, others lists.
    tensors: `TensorInfo` of each tensor, by name, in the order of the file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens a file and checks its header.

    Args:
      path: of the file.

    Raises:
      WeightsError: it is not a GGUF file, is truncated, or has an unknown quantisation.
      FileNotFoundError: there is no such file.
    """
    self.path = Path(path)
    self._bytes = map_file(self.path)
    cursor = _Cursor(self.path, self._bytes)
    n_tensors, n_pairs = _read_preamble(cursor)
    self.metadata = _read_metadata(cursor, n_pairs)
    self.tensors = _read_tensor_infos(cursor, n_tensors, self.metadata)

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """Dequantises one tensor.

    Args:
      name: of the tensor.
      rows: slice of its first axis.

    Returns:
      A float32 array, or float64 if the file has float64, in the shape of the tensor's `TensorInfo`. It may share
      memory with the file, and is then read-only.

    Raises:
      WeightsError: there is no such tensor, or it cannot be dequantised.
    """
    info = info_of(self, name)
    if rows != ALL and len(info.shape) == 1:
      return self.read(name)[rows]  # A vector may be packed in blocks, which must stay whole.
    if rows != ALL:
      info = _select_rows(info, rows)
    release_pages(self._bytes)
    raw = np.frombuffer(self._bytes, np.uint8, info.n_bytes, info.offset)
    if info.kind in _PLAIN:
      return raw.view(_PLAIN[info.kind]).reshape(info.shape)
    try:
      return _dequantise(raw, info)
    except NotImplementedError as e:
      raise errors.WeightsError(
        f'{self.path}: tensor {name!r} has quantisation {info.kind}, which cannot be dequantised',
        where=f'{info.n_bytes} bytes at offset {info.offset}',
        hint='convert the file to F16, Q8_0 or one of the Q4 and Q5 kinds',
      ) from e

  def value(self, key: str) -> Any:
    """A metadata value that must be present.

    Args:
      key: name of the value.

    Returns:
      The value.

    Raises:
      WeightsError: the header has no such key.
    """
    if key not in self.metadata:
      cause = 'the file has another architecture than expected'
      where = f'{self.path}, {len(self.metadata)} keys'
      raise errors.unknown(
        errors.WeightsError, 'metadata', key, self.metadata, where=where, cause=cause
      )
    return self.metadata[key]


class _Cursor:
  """Reads the header from start to end, and never past the end of the file."""

  def __init__(self, path: Path, data: bytes | mmap.mmap):
    self.path, self.data, self.size, self.at = path, data, len(data), 0

  def take(self, n_bytes: int, what: str) -> bytes:
    if n_bytes > self.size - self.at:
      raise truncation_error(self.path, what, self.at, n_bytes, self.size)
    self.at += n_bytes
    return self.data[self.at - n_bytes : self.at]

  def u32(self, what: str) -> int:
    return struct.unpack('<I', self.take(4, what))[0]

  def u64(self, what: str) -> int:
    return struct.unpack('<Q', self.take(8, what))[0]

  def string(self, what: str) -> str:
    start, length = self.at, self.u64(what)
    if length > self.size - self.at:
      raise truncation_error(self.path, what, self.at, length, self.size)
    try:
      # Decoded in place: a whole tokenizer.json may be a value.
      with memoryview(self.data) as data, data[self.at : self.at + length] as part:
        text = str(part, 'utf-8')
    except UnicodeDecodeError as e:
      raise errors.WeightsError(
        f'{self.path}: {what} at offset {start} is not UTF-8', cause='the header is damaged'
      ) from e
    self.at += length
    return text

  def value(self, kind: int, what: str, nesting: int = 0) -> Any:
    if kind == _STRING:
      return self.string(what)
    if kind == _ARRAY:
      return self.array(what, nesting)
    return self.numbers(kind, 1, what)[0].item()

  def array(self, what: str, nesting: int) -> Any:
    if nesting == _MAX_NESTING:
      raise errors.WeightsError(
        f'{self.path}: {what} nests arrays more than {_MAX_NESTING} deep',
        where=f'offset {self.at}',
        cause='the header is damaged',
      )
    kind, count = self.u32(what), self.u64(what)
    if kind in (_STRING, _ARRAY):
      return [self.value(kind, what, nesting + 1) for _ in range(count)]
    return self.numbers(kind, count, what)

  def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
    if kind not in _SCALARS:
      raise errors.WeightsError(
        f'{self.path}: {what} has value type {kind}; the format knows 0 to 12',
        where=f'offset {self.at}',
        cause='the header is damaged, or of a newer format',
      )
    dtype = np.dtype(_SCALARS[kind])
    return np.frombuffer(self.take(dtype.itemsize * count, what), dtype)


def _select_rows(info: TensorInfo, rows: slice) -> TensorInfo:
  """The description of some rows of a tensor with at least two axes; each row is packed by itself."""
  start, stop, _ = rows.indices(info.shape[0])
  row_bytes = info.n_bytes // info.shape[0]
  return dataclasses.replace(
    info,
    shape=(stop - start, *info.shape[1:]),
    offset=info.offset + start * row_bytes,
    n_bytes=(stop - start) * row_bytes,
  )


def _dequantise(raw: np.ndarray, info: TensorInfo) -> np.ndarray:
  """Dequantises a tensor some thousand blocks at a time, because the arithmetic copies its input several times."""
  package = extras.require('gguf', 'models')
  kind = package.GGMLQuantizationType[info.kind]
  block, block_bytes = package.GGML_QUANT_SIZES[kind]
  out = np.empty(info.shape, np.float32)
  flat, step = out.reshape(-1), max(1, _CHUNK // block)
  for at in range(0, len(raw) // block_bytes, step):
    blocks = raw[at * block_bytes : (at + step) * block_bytes]
    flat[at * block : (at + step) * block] = package.quants.dequantize(blocks, kind)
  return out


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
  magic = cursor.take(4, 'the magic')
  if magic != MAGIC:
    raise errors.WeightsError(
      f'{cursor.path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}', where='offset 0'
    )
  version = cursor.u32('the version')
  if version not in VERSIONS:
    raise errors.WeightsError(
      f'{cursor.path} has GGUF version {version}; versions {VERSIONS} are read',
      where='offset 4',
      cause='a big-endian file'
      if version & 0xFFFF == 0
      else 'a format newer or older than this reader',
    )
  return cursor.u64('the number of tensors'), cursor.u64('the number of metadata pairs')


def _read_metadata(cursor: _Cursor, n_pairs: int) -> dict[str, Any]:
  metadata: dict[str, Any] = {}
  for i in range(n_pairs):
    start = cursor.at
    key = cursor.string(f'the key of metadata pair {i}')
    if key in metadata:
      raise errors.WeightsError(
        f'{cursor.path}: metadata {key!r} occurs twice', where=f'offset {start}'
      )
    what = f'metadata {key!r}'
    metadata[key] = cursor.value(cursor.u32(what), what)
  return metadata


def _read_tensor_infos(cursor: _Cursor, n_tensors: int, metadata: dict) -> dict[str, TensorInfo]:
  relative: dict[str, TensorInfo] = {}
  for i in range(n_tensors):
    start = cursor.at
    info = _read_tensor_info(cursor, i)
    if info.name in relative:
      raise errors.WeightsError(
        f'{cursor.path}: tensor {info.name!r} occurs twice', where=f'offset {start}'
      )
    relative[info.name] = info
  alignment = metadata.get('general.alignment', _DEFAULT_ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
    raise errors.WeightsError(
      f'{cursor.path}: general.alignment is {alignment!r:.100}, not a power of two'
    )
  base = _round_up(cursor.at, alignment)
  tensors = {name: _place(cursor, info, base) for name, info in relative.items()}
  _check_filled(cursor, tensors.values(), alignment)
  return tensors


def _round_up(at: int, alignment: int) -> int:
  return -(-at // alignment) * alignment


def _check_filled(cursor: _Cursor, infos: Iterable[TensorInfo], alignment: int) -> None:
  """Checks that tensors follow each other in the order of the header, each at the next aligned offset."""
  end, at = cursor.at, _round_up(cursor.at, alignment)
  for info in infos:
    if info.offset != at:
      raise errors.WeightsError(
        f'{cursor.path}: tensor {info.name!r} begins at offset {info.offset}, expected {at}',
        where=f'{info.kind}, shape {info.shape}; general.alignment is {alignment}',
        cause='the header is damaged: the format leaves no gap and no overlap',
      )
    end, at = info.offset + info.n_bytes, _round_up(info.offset + info.n_bytes, alignment)
  if not end <= cursor.size <= at:
    raise errors.WeightsError(
      f'{cursor.path}: the last tensor ends at offset {end}, the file has {cursor.size} bytes',
      cause='the header belongs to another file, or data was appended',
    )


def _read_tensor_info(cursor: _Cursor, index: int) -> TensorInfo:
  package = extras.require('gguf', 'models')
  name = cursor.string(f'the name of tensor {index}')
  what = f'the description of tensor {name!r}'
  n_dims = cursor.u32(what)
  if n_dims > _MAX_DIMS:
    raise errors.WeightsError(
      f'{cursor.path}: tensor {name!r} has {n_dims} axes; the format has at most {_MAX_DIMS}',
      where=f'offset {cursor.at - 4}',
      cause='the header is damaged',
    )
  shape = struct.unpack(f'<{n_dims}Q', cursor.take(8 * n_dims, what))[::-1]
  if 0 in shape:
    raise errors.WeightsError(
      f'{cursor.path}: tensor {name!r} has shape {shape}, which is empty',
      where=f'offset {cursor.at - 8 * n_dims}',
      cause='the header is damaged',
    )
  kind_at, kind_id = cursor.at, cursor.u32(what)
  try:
    kind = package.GGMLQuantizationType(kind_id)
  except ValueError as e:
    raise errors.WeightsError(
      f'{cursor.path}: tensor {name!r} has unknown quantisation {kind_id}',
      where=f'offset {kind_at}',
      cause='the file is damaged, or newer than the installed gguf package',
      hint='compare the checksum of the file, then pip install --upgrade gguf',
    ) from e
  block, block_bytes = package.GGML_QUANT_SIZES[kind]
  if shape and shape[-1] % block:
    raise errors.WeightsError(
      f'{cursor.path}: tensor {name!r} has shape {shape}, '
      f'but {kind.name} packs rows in blocks of {block}',
      where=f'offset {kind_at}',
    )
  n_bytes = math.prod(shape) // block * block_bytes
  return TensorInfo(name, shape, kind.name, cursor.u64(what), n_bytes)


def _place(cursor: _Cursor, info: TensorInfo, base: int) -> TensorInfo:
  """The same tensor at its absolute offset, checked to be inside the file."""
  offset = base + info.offset
  if offset + info.n_bytes > cursor.size:
    what = f'tensor {info.name!r} ({info.kind}, shape {info.shape})'
    raise truncation_error(cursor.path, what, offset, info.n_bytes, cursor.size)
  return dataclasses.replace(info, offset=offset)
