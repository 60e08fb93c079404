"""A checkpoint in a directory: one safetensors file, or several and an index.

Large models are published in pieces, and a piece read for the whole is a model with layers missing.
`open_checkpoint` takes whatever a directory has, and several files behave as one.

    file = open_checkpoint(directory)
    file.tensors, file.read(name)              as of a SafetensorsFile

Sharp edge: index and files must agree about every tensor, in both directions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import errors
from mechjax.weights.json_files import read_json
from mechjax.weights.safetensors import PICKLES, SafetensorsFile, check_not_pickle
from mechjax.weights.tensors import ALL, info_of

# Of a file, in bytes, on every file system in use.
_MAX_NAME_BYTES = 255
INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'


class SafetensorsShards:
  """Several files and the index that says which tensor is in which.

  Attributes:
    path: of the index.
    tensors: name to `TensorInfo`; offsets are in the tensor's own file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens an index and every file it names.

    Args:
      path: of the index, whose files lie beside it.

    Raises:
      WeightsError: the index is damaged, or it and the files do not agree.
    """
    self.path = Path(path)
    where = _weight_map(self.path)
    names = sorted(set(where.values()))
    if absent := [name for name in names if not (self.path.parent / name).is_file()]:
      raise errors.WeightsError(
        f'{self.path} names {len(absent)} files that are not there: {absent}',
        cause='a checkpoint of which only a part was downloaded',
        hint='fetch the rest into the same directory',
      )
    files = {name: SafetensorsFile(self.path.parent / name) for name in names}
    wrong = [t for t, file in where.items() if t not in files[file].tensors]
    wrong += [t for name, f in files.items() for t in f.tensors if where.get(t) != name]
    if wrong:
      raise errors.WeightsError(
        f'{self.path} and its files do not agree about {sorted(set(wrong))}',
        cause='files of several checkpoints in one directory',
      )
    self._files = {tensor: files[name] for tensor, name in where.items()}
    self.tensors = {tensor: file.tensors[tensor] for tensor, file in self._files.items()}

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """One tensor, as `SafetensorsFile.read`."""
    info_of(self, name)
    return self._files[name].read(name, rows)


def open_checkpoint(path: str | os.PathLike[str]) -> SafetensorsFile | SafetensorsShards:
  """Opens a safetensors file, an index, or the one or the other in a directory.

  Args:
    path: of the file or directory.

  Returns:
    A reader.

  Raises:
    WeightsError: there is none, or what is there is damaged.
  """
  path = Path(path)
  if path.is_dir():
    path = _find_file(path)
  return SafetensorsShards(path) if path.suffix == '.json' else SafetensorsFile(path)


def _find_file(directory: Path) -> Path:
  for name in (INDEX, SINGLE):
    if (directory / name).is_file():
      return directory / name
  others = sorted(directory.glob('*.safetensors'))
  if len(others) == 1:
    return others[0]
  for pickle in sorted(p for p in directory.iterdir() if p.suffix in PICKLES):
    check_not_pickle(pickle)
  raise errors.WeightsError(
    f'no checkpoint in {directory}: neither {INDEX} nor {SINGLE}',
    where=f'safetensors files there: {[p.name for p in others]}',
    hint='give the path of the file that you mean',
  )


def _weight_map(path: Path) -> Mapping[str, str]:
  found = read_json(path).get('weight_map')
  if not isinstance(found, dict) or not found or not all(_is_plain(v) for v in found.values()):
    raise errors.WeightsError(
      f'{path}: weight_map does not give a file beside the index for each tensor',
      cause='the index is damaged, or one of a checkpoint of another kind',
    )
  return found


def _is_plain(name: Any) -> bool:
  """Whether a name stays in its directory, and is a safetensors file."""
  return (
    isinstance(name, str)
    and name.endswith('.safetensors')
    and Path(name).name == name
    and name.isprintable()
    and len(name.encode()) <= _MAX_NAME_BYTES
  )
