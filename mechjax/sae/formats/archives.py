"""Zip files from somebody else: NumPy's `.npz` and PyTorch's `.pt` are both one.

What a zip file claims about itself is checked before memory is spent on it: a member is where the directory says and
as long as it says (the standard library does that, with a checksum), no two members have one name, and all members
together are not far larger than the file, so that a few kilobytes cannot unfold into a full memory. Whatever is wrong
comes out as a `WeightsError` that names the file.

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
from mechjax.weights.tensors import aligned

# Weights hardly compress. The format itself allows a thousand.
_MAX_EXPANSION = 20
_CHUNK = 1 << 18


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
  """A zip file; any error of the block that is not ours becomes one.

  Args:
    path: of the file.

  Yields:
    The open archive.

  Raises:
    WeightsError: it is not a zip file, is truncated or damaged, or claims to unfold into too much.
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
          cause='a file made to fill the memory; weights do not compress like that',
        )
      yield archive
  except MechjaxError:
    raise
  except Exception as e:  # what zipfile raises on damaged bytes is as varied as the bytes
    raise WeightsError(
      f'{path} ({size} bytes) cannot be read: {type(e).__name__}: {e!s:.200}',
      cause='a download or copy that stopped early, a damaged file, or one of another kind',
      hint='delete the file and fetch it again',
    ) from e


def _check_names(path: Path, names: list[str]) -> None:
  name, count = max(collections.Counter(names).items(), key=lambda x: x[1], default=('', 1))
  if count > 1:
    raise WeightsError(
      f'{path} holds {name!r:.100} {count} times', cause='a damaged file, or one written twice into'
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """All arrays of an `.npz`.

  Args:
    path: of the file.

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
    array = aligned(shape, dtype)
    rows = np.atleast_1d(array.T if fortran else array)
    step = max(1, _CHUNK * len(rows) // max(1, n_bytes))
    for start in range(0, len(rows), step):
      some = rows[start : start + step]
      some[...] = np.frombuffer(file.read(some.nbytes), dtype).reshape(some.shape)
    # Bytes of another machine's order are turned where they lie.
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder('='))
