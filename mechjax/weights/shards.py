"""A checkpoint in a directory: one safetensors file, or several and an index.

Large models are published in shards, and a shard read as the whole is a model with missing layers.
`open_checkpoint` opens the checkpoint of a directory, and several files behave as one.

    file = open_checkpoint(directory)
    file.tensors, file.read(name)              as in a SafetensorsFile

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

# Maximum length of a file name on common file systems.
_MAX_NAME_BYTES = 255
INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'


class SafetensorsShards:
  """Several files, and the index that maps each tensor to its file.

  Attributes:
    path: of the index.
    tensors: `TensorInfo` of each tensor, by name; offsets are in the tensor's own file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens an index and every file that it names.

    Args:
      path: of the index; its files are in the same directory.

    Raises:
      WeightsError: the index is damaged, or it and the files do not agree.
    """
    self.path = Path(path)
    where = _weight_map(self.path)
    names = sorted(set(where.values()))
    if absent := [name for name in names if not (self.path.parent / name).is_file()]:
      raise errors.WeightsError(
        f'{self.path} names {len(absent)} files that do not exist: {absent}',
        cause='only a part of the checkpoint was downloaded',
        hint='download the rest into the same directory',
      )
    files = {name: SafetensorsFile(self.path.parent / name) for name in names}
    wrong = [t for t, file in where.items() if t not in files[file].tensors]
    wrong += [t for name, f in files.items() for t in f.tensors if where.get(t) != name]
    if wrong:
      raise errors.WeightsError(
        f'{self.path} and its files do not agree about {sorted(set(wrong))}',
        cause='the directory has files of several checkpoints',
      )
    self._files = {tensor: files[name] for tensor, name in where.items()}
    self.tensors = {tensor: file.tensors[tensor] for tensor, file in self._files.items()}

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """Reads a tensor, as `SafetensorsFile.read` does."""
    info_of(self, name)
    return self._files[name].read(name, rows)


def open_checkpoint(path: str | os.PathLike[str]) -> SafetensorsFile | SafetensorsShards:
  """Opens a safetensors file, an index, or a directory that has one of the two.

  Args:
    path: of the file or directory.

  Returns:
    A reader.

  Raises:
    WeightsError: there is no checkpoint, or it is damaged.
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
    where=f'safetensors files in it: {[p.name for p in others]}',
    hint='give the path of one file',
  )


def _weight_map(path: Path) -> Mapping[str, str]:
  found = read_json(path).get('weight_map')
  if not isinstance(found, dict) or not found or not all(_is_plain(v) for v in found.values()):
    raise errors.WeightsError(
      f"{path}: weight_map does not map each tensor to a file in the index's directory",
      cause='the index is damaged, or belongs to a checkpoint of another kind',
    )
  return found


def _is_plain(name: Any) -> bool:
  """Whether a name is that of a safetensors file in the same directory."""
  return (
    isinstance(name, str)
    and name.endswith('.safetensors')
    and Path(name).name == name
    and name.isprintable()
    and len(name.encode()) <= _MAX_NAME_BYTES
  )
