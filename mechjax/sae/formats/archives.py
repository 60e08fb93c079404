"""Untrusted zip files: NumPy's `.npz` and PyTorch's `.pt` are both zip files.

The claims of a zip file about itself are checked before memory is spent on it: a member has the place and the length
that the directory states (the standard library checks that, with a checksum), no two members have the same name, and
all members together are not much larger than the file, so that a few kilobytes cannot expand until memory is full.
Every problem is raised as a `WeightsError` that names the file.

Sharp edge: an array in an `.npz` is read by its header alone, never as a pickle; arrays of objects are refused.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mechjax.errors import MechjaxError, WeightsError
from mechjax.weights.tensors import allocate_aligned

# Weights hardly compress. The format itself allows a factor of a thousand.
_MAX_EXPANSION = 20
_CHUNK = 1 << 18


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
  """Opens a zip file; converts any error of the block that is not a MechjaxError into one.

  Args:
    path: path of the file.

  Yields:
    The open archive.

  Raises:
    WeightsError: it is not a zip file, is truncated or damaged, or claims to expand too much.
    FileNotFoundError: there is no such file.
  """
  size = os.path.getsize(path)
  try:
    with zipfile.ZipFile(path) as archive:
      _check_names(path, [m.filename.removesuffix('.npy') for m in archive.infolist()])
      claimed = sum(member.file_size for member in archive.infolist())
      if claimed > _MAX_EXPANSION * size:
        raise WeightsError(
          f'{path} has {size} bytes and claims to hold {claimed}',
          cause='a file made to exhaust memory; weights do not compress that much',
        )
      yield archive
  except MechjaxError:
    raise
  except Exception as e:  # zipfile can raise anything on damaged bytes
    raise WeightsError(
      f'{path} ({size} bytes) cannot be read: {type(e).__name__}: {e!s:.200}',
      cause='an incomplete download or copy, a damaged file, or one of another kind',
      hint='delete the file and fetch it again',
    ) from e


def _check_names(path: Path, names: list[str]) -> None:
  name, count = max(collections.Counter(names).items(), key=lambda x: x[1], default=('', 1))
  if count > 1:
    raise WeightsError(
      f'{path} holds {name!r:.100} {count} times',
      cause='a damaged file, or one that was written to twice',
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Reads all arrays of an `.npz`.

  Args:
    path: path of the file.

  Returns:
    Arrays by name.

  Raises:
    WeightsError: as `open_zip`; an array of objects, or one whose header does not fit its bytes.
    FileNotFoundError: there is no such file.
  """
  with open_zip(path) as archive:
    return {
      member.filename.removesuffix('.npy'): _array(path, archive, member)
      for member in archive.infolist()
    }


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = read[version](file)
    n_bytes = math.prod(shape) * dtype.itemsize
    left = member.file_size - file.tell()
    if dtype.hasobject or n_bytes != left:
      raise WeightsError(
        f'{path}: {member.filename!r:.100} is {dtype} {shape} and has {left} bytes',
        cause='objects, which only unpickling can read' if dtype.hasobject else 'a damaged header',
      )
    array = allocate_aligned(shape, dtype)
    rows = np.atleast_1d(array.T if fortran else array)
    step = max(1, _CHUNK * len(rows) // max(1, n_bytes))
    for start in range(0, len(rows), step):
      some = rows[start : start + step]
      some[...] = np.frombuffer(file.read(some.nbytes), dtype).reshape(some.shape)
    # Bytes in another machine's order are swapped in place.
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder('='))
