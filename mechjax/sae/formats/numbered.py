"""Files of one dictionary for each layer, or of one layer of a dictionary: `layer_0.safetensors`, `layer_1. ...`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from mechjax.errors import WeightsError
from mechjax.weights.safetensors import SafetensorsFile

T = TypeVar('T')


def find_numbered(directory: Path, prefix: str) -> dict[int, Path]:
  """Safetensors files whose names are a prefix and a number, keyed by the number."""
  pattern = re.compile(re.escape(prefix) + r'(0|[1-9]\d*)\.safetensors')
  found = {}
  for name in os.listdir(directory):
    if match := pattern.fullmatch(name):
      found[int(match[1])] = directory / name
  return dict(sorted(found.items()))


def check_all_layers(where: Path, found: Mapping[int, T], expected: int, what: str) -> None:
  """Checks that there is something for each of the layers 0 to `expected` - 1, and for no other.

  Raises:
    WeightsError: layers are missing, or there are too many.
  """
  if missing := [n for n in range(expected) if n not in found]:
    raise WeightsError(
      f'{where} has no {what} of the layers {missing}',
      where=f'it has those of {sorted(found)}, and {expected} are needed',
      cause='an incomplete download or copy',
    )
  if more := [n for n in found if n >= expected]:
    raise WeightsError(
      f'{where} has {what} of the layers {more} of a dictionary with {expected} layers',
      cause='files of two dictionaries in one directory',
    )


def read_tensors(path: Path) -> dict[str, object]:
  """All tensors of a file by name."""
  file = SafetensorsFile(path)
  return {name: file.read(name) for name in file.tensors}


def hub_patterns(prefix: str) -> tuple[str, ...]:
  """Patterns of numbered files for a download, up to number 999; a star would also match files in subdirectories."""
  digits = '[0-9]'
  return tuple(f'{prefix}{digits * n}.safetensors' for n in (1, 2, 3))
