"""Writing of small GGUF files, such as control vectors, and never a partial one.

The library `gguf`, which the inventors of the format maintain, lays out the header. The file gets its name by a rename
when it is complete.

    save('control.gguf', {'direction.12': v}, 'controlvector', {'controlvector.model_hint': 'llama'})

Sharp edge: all arrays are in memory; models are not written here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mechjax import errors, extras


def save(
  path: str | os.PathLike[str],
  arrays: Mapping[str, Float32[np.ndarray, ' ...']],
  architecture: str,
  metadata: Mapping[str, str | int],
) -> None:
  """Writes arrays into one file, and replaces it if it exists.

  Args:
    path: of the file.
    arrays: arrays in float32, by the names of their tensors.
    architecture: the value of general.architecture.
    metadata: further values of the header: texts, and numbers from 0 to 2**32 - 1.

  Raises:
    WeightsError: no arrays, an empty one, or another dtype.
    MissingExtraError: the library `gguf` is not installed.
  """
  odd = {
    k: (str(a.dtype), a.shape) for k, a in arrays.items() if a.dtype != np.float32 or not a.size
  }
  if odd or not arrays:
    raise errors.WeightsError(
      f'GGUF files are written from arrays in float32, got {odd or "no array"}'
    )
  target = Path(path)
  package = extras.require('gguf', 'models')
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.partial-', dir=target.parent) as scratch:
    part = Path(scratch) / target.name
    writer = package.GGUFWriter(str(part), architecture)
    for key, value in metadata.items():
      add = writer.add_string if isinstance(value, str) else writer.add_uint32
      add(key, value)
    for name, array in arrays.items():
      writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, target)
