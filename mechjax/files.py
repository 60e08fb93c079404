"""Files that are whole or not there.

A file is written beside its place, brought to the disk and renamed, so that a process that is killed leaves the old
one or the new one and never half of either. What it may leave is the scratch file, whose name begins with a dot.
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
  """A file to write, which gets its name when the block ends and not if it raises."""
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
  """Whether a path exists; a name that no file system can hold (300 letters) does not."""
  try:
    return path.exists()
  except OSError:
    return False


def sweep(directory: Path, names: Collection[str]) -> None:
  """Removes what processes that were killed left of files; for who alone writes these files.

  Args:
    directory: where.
    names: of the files.
  """
  for scratch in directory.glob('.*'):
    if scratch.name.removeprefix('.').rpartition('.')[0] in names:
      scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
  """An object of JSON as a whole file."""
  with whole(path) as file:
    file.write(json.dumps(value, indent=2, allow_nan=False).encode())
