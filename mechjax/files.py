"""Files that are complete or do not exist.

A file is written under a scratch name in the same directory, flushed to the disk and renamed, so that a process that
is killed leaves the old file or the new one, never a part. It may leave the scratch file, whose name begins with a dot.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mechjax.errors import MechjaxError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
  """Opens a file for writing, which gets its name when the block ends without an exception."""
  scratch = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with scratch.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)


def exists(path: Path) -> bool:
  """Whether a path exists; False for a name that no file system can hold (300 letters)."""
  try:
    return path.exists()
  except OSError:
    return False


def check_directory(path: Path, error: type[MechjaxError]) -> None:
  """Checks that a path is a directory or can become one, before anything is computed for it.

  Raises:
    MechjaxError: of the class `error`: it is a file, or would be inside one.
  """
  for place in (path, *path.parents):
    if exists(place):
      if not place.is_dir():
        raise error(
          f'the directory {path} cannot be made: {place} is a file', hint='the path of a directory'
        )
      return


def sweep(directory: Path, names: Collection[str]) -> None:
  """Removes scratch files that killed processes left; only for the sole writer of these files.

  Args:
    directory: directory of the files.
    names: names of the files.
  """
  for scratch in directory.glob('.*'):
    if scratch.name.removeprefix('.').rpartition('.')[0] in names:
      scratch.unlink(missing_ok=True)


def read_npz(path: str | os.PathLike[str], error: type[MechjaxError]) -> dict[str, np.ndarray]:
  """Reads the arrays of an .npz file, without pickle.

  Raises:
    OSError: the file does not exist or may not be read.
    MechjaxError: of the class `error`: it is damaged, or holds something other than plain arrays.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file.items())
  except (FileNotFoundError, IsADirectoryError, PermissionError):
    raise
  except Exception as e:  # damaged bytes can raise anything
    raise error(f'{path} is not an .npz of plain arrays: {type(e).__name__}: {e}') from e


def read_json(path: Path, error: type[MechjaxError]) -> Any:
  """Reads a JSON file.

  Raises:
    OSError: the file does not exist or may not be read.
    MechjaxError: of the class `error`: it is damaged.
  """
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as e:
    raise error(
      f'{path} is not JSON: {e}', cause='a file that was cut or edited', hint='remove this file'
    ) from e


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON value as a `whole` file."""
  with whole(path) as file:
    file.write(json.dumps(value, indent=2, allow_nan=False).encode())
