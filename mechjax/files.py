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


def sweep(directory: Path, names: Collection[str]) -> None:
  """Removes scratch files that killed processes left; only for the sole writer of these files.

  Args:
    directory: directory of the files.
    names: names of the files.
  """
  for scratch in directory.glob('.*'):
    if scratch.name.removeprefix('.').rpartition('.')[0] in names:
      scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON value as a `whole` file."""
  with whole(path) as file:
    file.write(json.dumps(value, indent=2, allow_nan=False).encode())
