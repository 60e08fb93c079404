"""JSON files of other programs: configs, indices, headers.

Every function returns a JSON object, so that callers need not check the type. Python's reader is too
lenient for a file that may be damaged: of two values under one key it takes the last, it accepts NaN,
1e999 becomes infinity, and deeply nested brackets end in a RecursionError.

Sharp edge: files are read whole, so their size is bounded; the largest known files are tokenizers, of
some forty megabytes.
"""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

from mechjax import errors

_MAX_BYTES = 200_000_000


def read_json(path: Path) -> dict[str, Any]:
  """Reads the JSON object in a file.

  Args:
    path: of the file.

  Returns:
    The object.

  Raises:
    WeightsError: there is no such file, or it is damaged.
  """
  return parse_json(path, read_bytes(path), 'the file')


def read_bytes(path: Path) -> bytes:
  """Reads the bytes of a JSON file.

  Args:
    path: of the file.

  Returns:
    Its bytes.

  Raises:
    WeightsError: there is no such file, or it is too large for a JSON file.
  """
  if not path.is_file():
    raise errors.WeightsError(
      f'no {path.name} in {path.parent}', hint='give the directory of a whole checkpoint'
    )
  if path.stat().st_size > _MAX_BYTES:
    raise errors.WeightsError(
      f'{path} has {path.stat().st_size} bytes; the maximum is {_MAX_BYTES}'
    )
  try:
    return path.read_bytes()
  except OSError as e:
    raise errors.WeightsError(f'{path} cannot be read: {e.strerror}') from e


def read_sibling(path: Path, name: str) -> dict[str, Any]:
  """The JSON object in the file `name` in the directory of `path`; empty if there is no such file."""
  sibling = path.with_name(name)
  return read_json(sibling) if sibling.is_file() else {}


def parse_json(path: Path, text: bytes, what: str) -> dict[str, Any]:
  """Parses a JSON object that may be damaged.

  Args:
    path: of the file that contains it.
    text: the JSON.
    what: name of the text in messages.

  Returns:
    The object, in which every key occurs once.

  Raises:
    WeightsError: the text is not valid JSON, or not an object.
  """
  try:
    found = json.loads(
      text,
      object_pairs_hook=_check_unique,
      parse_constant=_raise_for_constant,
      parse_float=_check_finite,
    )
  except (ValueError, RecursionError) as e:
    raise errors.WeightsError(
      f'{path}: {what} is not valid JSON: {e}', cause='the file is damaged'
    ) from e
  if not isinstance(found, dict):
    raise errors.WeightsError(f'{path}: {what} is {type(found).__name__}, not an object')
  return found


def _check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    often = collections.Counter(key for key, _ in pairs).most_common(1)
    raise ValueError(f'{often[0][0]!r:.100} occurs {often[0][1]} times')
  return found


def _check_finite(text: str) -> float:
  value = float(text)
  if math.isinf(value):
    raise ValueError(f'{text:.50} is larger than the largest float64')
  return value


def _raise_for_constant(name: str) -> Any:
  raise ValueError(f'{name} is not a JSON number')
