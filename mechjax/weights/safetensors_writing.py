"""Writing of safetensors, one tensor at a time, and never a partial file.

A model is published as safetensors because every library reads them. The values are computed while
they are written: a `TensorEntry` knows its shape and dtype beforehand and makes its values when
asked, so the header can be written first, and the host holds one tensor at a time, however large
the model. A partial checkpoint is never visible: files and directories get their names by one
rename.

    save('directions.safetensors', {'resid_post.12': direction})

Sharp edge: a directory that is written must be new or empty; an existing checkpoint is never
overwritten, because that would not be atomic.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import errors, files
from mechjax.weights.safetensors import DTYPES
from mechjax.weights.shards import INDEX, SINGLE

KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorEntry:
  """A tensor to be written.

  Attributes:
    shape: shape of the tensor.
    dtype: dtype of the tensor.
    make: returns its values; called when the tensor is written.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def n_bytes(self) -> int:
    """Size of the tensor in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def save(
  path: str | os.PathLike[str],
  arrays: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes arrays into one file, and replaces it if it exists.

  Args:
    path: of the file.
    arrays: NumPy or JAX arrays, by name.
    metadata: texts for the header, by name.

  Raises:
    WeightsError: a dtype that the format does not have.
  """
  entries = {
    name: TensorEntry(a.shape, np.dtype(a.dtype), functools.partial(np.asarray, a))
    for name, a in arrays.items()
  }
  with _rename_at_end(Path(path)) as scratch:
    _write(scratch, entries, metadata)


def write_checkpoint(directory: Path, entries: Mapping[str, TensorEntry], shard_bytes: int) -> None:
  """Writes tensors as transformers does: one file, or several and an index.

  Args:
    directory: for the files; use it within `new_directory`.
    entries: the tensors, by name.
    shard_bytes: maximum size of a file, unless a single tensor is larger.
  """
  shards = _split_into_shards(entries, shard_bytes)
  if len(shards) == 1:
    _write(directory / SINGLE, entries)
    return
  where: dict[str, str] = {}
  for i, names in enumerate(shards, 1):
    file = f'model-{i:05}-of-{len(shards):05}.safetensors'
    _write(directory / file, {name: entries[name] for name in names})
    where |= dict.fromkeys(names, file)
  total = sum(entry.n_bytes for entry in entries.values())
  index = {'metadata': {'total_size': total}, 'weight_map': where}
  (directory / INDEX).write_text(json.dumps(index, indent=2))


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
  """A new directory, which gets its name when everything in it is written.

  Args:
    path: of the directory; it must not exist, or be empty.

  Yields:
    A scratch directory next to it, which is removed if the block fails.

  Raises:
    WeightsError: the path exists and is not an empty directory, or is inside a file.
  """
  path = Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise errors.WeightsError(
      f'{path} exists already', hint='give another directory, or remove this one'
    )
  files.check_directory(path, errors.WeightsError)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.partial-', dir=path.parent) as scratch:
    inside = Path(scratch) / 'whole'
    inside.mkdir()
    yield inside
    os.replace(inside, path)


@contextlib.contextmanager
def _rename_at_end(path: Path) -> Iterator[Path]:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.partial-', dir=path.parent) as scratch:
    yield Path(scratch) / path.name
    os.replace(Path(scratch) / path.name, path)


def _split_into_shards(entries: Mapping[str, TensorEntry], shard_bytes: int) -> list[list[str]]:
  shards: list[list[str]] = [[]]
  room = shard_bytes
  for name, entry in entries.items():
    if shards[-1] and entry.n_bytes > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= entry.n_bytes
  return shards


def _write(
  path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes the file: length of the header, header, numbers. Wide dtypes come first, so that all are aligned."""
  if odd := {n: str(e.dtype) for n, e in entries.items() if e.dtype not in KINDS}:
    raise errors.WeightsError(
      f'safetensors do not support the dtypes of {odd}', where=f'supported: {[*DTYPES]}'
    )
  ordered = sorted(entries.items(), key=lambda item: -item[1].dtype.itemsize)
  header: dict[str, object] = {'__metadata__': {'format': 'pt', **(metadata or {})}}
  at = 0
  for name, e in ordered:
    end = at + e.n_bytes
    header[name] = {'dtype': KINDS[e.dtype], 'shape': e.shape, 'data_offsets': (at, end)}
    at = end
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as f:
    f.write(struct.pack('<Q', len(text)) + text)
    for _, e in ordered:
      f.write(np.ascontiguousarray(e.make()).reshape(-1).view(np.uint8).data)
