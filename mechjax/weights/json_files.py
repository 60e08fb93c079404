"""JSON that somebody else wrote: configs, indices, headers.

What comes out of here is an object and nothing else, so that whoever reads it need not ask. Python's
reader is more generous than is good for a file that may be damaged: of two values under one key it
takes the last, it knows NaN, 1e999 becomes infinity, and brackets nested deep enough end in a RecursionError.

Sharp edge: files are read whole, so their size is bounded; the largest that exist are tokenizers, of
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
  """The object in a file.

  Args:
    path: of the file.

  Returns:
    The object.

  Raises:
    WeightsError: there is no such file, or it is damaged.
  """
  return parse_json(path, read_bytes(path), 'the file')


def read_bytes(path: Path) -> bytes:
  """The bytes of a file of JSON.

  Args:
    path: of the file.

  Returns:
    All of them.

  Raises:
    WeightsError: there is no such file, or it is too large to be one of JSON.
  """
  if not path.is_file():
    raise errors.WeightsError(
      f'no {path.name} in {path.parent}', hint='give the directory of a whole checkpoint'
    )
  if path.stat().st_size > _MAX_BYTES:
    raise errors.WeightsError(f'{path} has {path.stat().st_size} bytes; {_MAX_BYTES} are read')
  try:
    return path.read_bytes()
  except OSError as e:
    raise errors.WeightsError(f'{path} cannot be read: {e.strerror}') from e


def read_sibling(path: Path, name: str) -> dict[str, Any]:
  """The JSON object in the file of this name beside another; empty if there is none."""
  beside = path.with_name(name)
  return read_json(beside) if beside.is_file() else {}


def parse_json(path: Path, text: bytes, what: str) -> dict[str, Any]:
  """A JSON object from somebody else.

  Args:
    path: of the file that it is from.
    text: the JSON.
    what: what it is, for the message.

  Returns:
    The object, no key of which occurs twice.

  Raises:
    WeightsError: it is not JSON, or not an object.
  """
  try:
    found = json.loads(
      text,
      object_pairs_hook=_check_unique,
      parse_constant=_check_constant,
      parse_float=_check_finite,
    )
  except (ValueError, RecursionError) as e:
    raise errors.WeightsError(
      f'{path}: {what} is not JSON as it should be: {e}', cause='the file is damaged'
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
    raise ValueError(f'{text:.50} is larger than any number')
  return value


def _check_constant(name: str) -> Any:
  raise ValueError(f'{name} is not a number of JSON')
