"""Checks of the settings of dictionaries and of their training: each raises an SAEError that holds the value."""

import math
import numbers
from typing import Any

from mechjax.errors import SAEError


def number(value: Any) -> bool:
  """Whether a setting is a finite number; True and False are none."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def expect_whole(owner: Any, *names: str) -> None:
  """Checks that fields of a dataclass are whole numbers, as `expect`."""
  for name in names:
    value = getattr(owner, name)
    expect(owner, name, number(value) and isinstance(value, numbers.Integral), 'a whole number')


def expect_number(owner: Any, *names: str) -> None:
  """Checks that fields of a dataclass are finite numbers, as `expect`."""
  for name in names:
    expect(owner, name, number(getattr(owner, name)), 'a finite number')


def expect(owner: Any, name: str, good: bool, wanted: str) -> None:
  """Checks one field of a dataclass.

  Args:
    owner: the dataclass.
    name: of the field.
    good: whether its value is as it should be.
    wanted: what it should be.

  Raises:
    SAEError: it is not; the message holds the value.
  """
  if not good:
    raise SAEError(f'{type(owner).__name__}.{name}={getattr(owner, name)!r} should be {wanted}')
