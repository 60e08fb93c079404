"""GGUF files, read tensor by tensor and believed only as far as they can be checked.

Quantised checkpoints are the weights that are easiest to come by, and a damaged one rarely
crashes: a file cut short reads as zeros, a wrong offset as noise, and the paper is written before
anybody looks. Hence the header is parsed here, with every length and offset compared with the size
of the file before a byte is allocated for it, and each error names the file, the offset, the
tensor and what was expected. The arithmetic of the quantisations is left to the `gguf` package,
which its inventors maintain.

    file = GGUFFile('model.gguf')
    file.metadata['llama.block_count']      30
    file.read('blk.0.attn_q.weight')        float32 [576, 576], dequantised

Sharp edges: shapes are given slowest axis first, as NumPy has them (GGUF writes them the other way
round), so a linear layer is [out, in]. The file stays memory mapped as long as the object lives.
Little-endian files of versions 2 and 3 only, which is what exists.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import errors, extras

MAGIC = b'GGUF'
VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {
  0: '<u1', 1: '<i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4',
  6: '<f4', 7: '?', 10: '<u8', 11: '<i8', 12: '<f8',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Where one tensor lies.

  Attributes:
    name: its name in the file.
    shape: slowest axis first.
    kind: name of the quantisation, such as 'Q4_1' or 'F32'.
    offset: of its first byte in the file.
    n_bytes: how many bytes it takes in the file.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  offset: int
  n_bytes: int


class GGUFFile:
  """An open GGUF file whose header has been checked against the file's size.

  Attributes:
    path: where it is.
    metadata: the key-value pairs of the header; arrays of numbers are NumPy arrays, others lists.
    tensors: name to `TensorInfo`, in the order of the file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens a file and checks its header.

    Args:
      path: of the file.

    Raises:
      WeightsError: it is not a GGUF file, is truncated, or holds a quantisation nobody knows.
      FileNotFoundError: there is no such file.
    """
    self.path = Path(path)
    with self.path.open('rb') as f:
      size = os.fstat(f.fileno()).st_size
      # An empty file cannot be mapped, and the cursor below says what is wrong with it.
      self._bytes = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b''
    cursor = _Cursor(self.path, self._bytes)
    n_tensors, n_pairs = _read_preamble(cursor)
    self.metadata = _read_metadata(cursor, n_pairs)
    self.tensors = _read_tensor_infos(cursor, n_tensors, self.metadata)

  def read(self, name: str) -> np.ndarray:
    """Dequantises one tensor.

    Args:
      name: of the tensor.

    Returns:
      A float32 array in the shape of the tensor's `TensorInfo`. It may share memory with the file,
      and is then read-only.

    Raises:
      WeightsError: there is no such tensor, or its quantisation cannot be undone.
    """
    info = self.tensors.get(name)
    if info is None:
      raise errors.WeightsError(
        f'no tensor {name!r} in {self.path}',
        where=f'{len(self.tensors)} tensors; the nearest: {errors.nearest(name, self.tensors)}',
        cause='the file is of another architecture than the name map, or is one part of several',
      )
    package = extras.require('gguf', 'models')
    kind = package.GGMLQuantizationType[info.kind]
    rows = (
      package.quants.quant_shape_to_byte_shape(info.shape, kind) if info.shape else (info.n_bytes,)
    )
    raw = np.frombuffer(self._bytes, np.uint8, info.n_bytes, info.offset).reshape(rows)
    try:
      return package.quants.dequantize(raw, kind).reshape(info.shape)
    except NotImplementedError as e:
      raise errors.WeightsError(
        f'{self.path}: tensor {name!r} has quantisation {info.kind}, which cannot be dequantised',
        where=f'{info.n_bytes} bytes at offset {info.offset}',
        mend='convert the file to F16, Q8_0 or one of the Q4 and Q5 kinds',
      ) from e

  def value(self, key: str) -> Any:
    """A metadata value that has to be there.

    Args:
      key: its name.

    Returns:
      The value.

    Raises:
      WeightsError: the header has no such key.
    """
    if key not in self.metadata:
      raise errors.WeightsError(
        f'{self.path} has no metadata {key!r}',
        where=f'{len(self.metadata)} keys; the nearest: {errors.nearest(key, self.metadata)}',
        cause='the file is of another architecture than the one asked for',
      )
    return self.metadata[key]


class _Cursor:
  """Reads forwards through the header and never past the end of the file."""

  def __init__(self, path: Path, data: bytes | mmap.mmap):
    self.path, self.data, self.size, self.at = path, data, len(data), 0

  def take(self, n_bytes: int, what: str) -> bytes:
    if n_bytes > self.size - self.at:
      raise truncated(self.path, what, self.at, n_bytes, self.size)
    self.at += n_bytes
    return self.data[self.at - n_bytes : self.at]

  def u32(self, what: str) -> int:
    return struct.unpack('<I', self.take(4, what))[0]

  def u64(self, what: str) -> int:
    return struct.unpack('<Q', self.take(8, what))[0]

  def string(self, what: str) -> str:
    start = self.at
    try:
      return self.take(self.u64(what), what).decode()
    except UnicodeDecodeError as e:
      raise errors.WeightsError(
        f'{self.path}: {what} at offset {start} is not UTF-8', cause='the header is damaged'
      ) from e

  def value(self, kind: int, what: str) -> Any:
    if kind == _STRING:
      return self.string(what)
    if kind == _ARRAY:
      return self.array(what)
    return self.numbers(kind, 1, what)[0].item()

  def array(self, what: str) -> Any:
    kind, count = self.u32(what), self.u64(what)
    if kind in (_STRING, _ARRAY):
      return [self.value(kind, what) for _ in range(count)]
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


def truncated(path: Path, what: str, offset: int, wanted: int, size: int) -> errors.WeightsError:
  """The error for bytes that should be in the file and are not."""
  return errors.WeightsError(
    f'{path} is truncated: {what} takes {wanted} bytes at offset {offset}, '
    f'the file has {size} bytes',
    cause='a download or copy that stopped early, or a damaged length in the header',
    mend='delete the file and fetch it again',
  )


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
  if not isinstance(alignment, int) or alignment < 1:
    raise errors.WeightsError(
      f'{cursor.path}: general.alignment is {alignment!r}, not a positive integer'
    )
  base = math.ceil(cursor.at / alignment) * alignment
  return {name: _placed(cursor, info, base) for name, info in relative.items()}


def _read_tensor_info(cursor: _Cursor, index: int) -> TensorInfo:
  package = extras.require('gguf', 'models')
  name = cursor.string(f'the name of tensor {index}')
  what = f'the description of tensor {name!r}'
  n_dims = cursor.u32(what)
  shape = struct.unpack(f'<{n_dims}Q', cursor.take(8 * n_dims, what))[::-1]
  if 0 in shape:
    raise errors.WeightsError(
      f'{cursor.path}: tensor {name!r} has shape {shape}, which holds nothing',
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
      mend='compare the checksum of the file, then pip install --upgrade gguf',
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


def _placed(cursor: _Cursor, info: TensorInfo, base: int) -> TensorInfo:
  """The same tensor at its absolute offset, known to lie inside the file."""
  offset = base + info.offset
  if offset + info.n_bytes > cursor.size:
    what = f'tensor {info.name!r} ({info.kind}, shape {info.shape})'
    raise truncated(cursor.path, what, offset, info.n_bytes, cursor.size)
  return dataclasses.replace(info, offset=offset)
