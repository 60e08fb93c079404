"""Checks of the settings of dictionaries and of their training: each raises an SAEError that contains the value."""

import math
import numbers
from typing import Any

import numpy as np

from mechjax.errors import SAEError


def is_number(value: Any) -> bool:
  """Whether a setting is a finite number; True and False are not numbers."""
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(owner: Any, *names: str) -> None:
  """Checks that fields of a dataclass are whole numbers; see `check_field`."""
  for name in names:
    value = getattr(owner, name)
    check_field(
      owner, name, is_number(value) and isinstance(value, numbers.Integral), 'a whole number'
    )


def check_number(owner: Any, *names: str) -> None:
  """Checks that fields of a dataclass are finite numbers; see `check_field`."""
  for name in names:
    check_field(owner, name, is_number(getattr(owner, name)), 'a finite number')


def check_field(owner: Any, name: str, valid: bool, expected: str) -> None:
  """Checks one field of a dataclass.

  Args:
    owner: the dataclass.
    name: name of the field.
    valid: whether its value is allowed.
    expected: description of the allowed values.

  Raises:
    SAEError: the value is not allowed; the message contains it.
  """
  if not valid:
    raise SAEError(f'{type(owner).__name__}.{name}={getattr(owner, name)!r} should be {expected}')


def check_activations(x: Any) -> None:
  """Raises SAEError unless activations are an array, with an axis or more."""
  if not hasattr(x, 'dtype') or not np.ndim(x):
    raise SAEError(
      f'activations are an array, got {x!r:.100} of type {type(x).__name__}',
      hint='jnp.asarray(x), with x [..., D]',
    )


def check_some(x: Any) -> None:
  """Raises SAEError if a batch has no tokens."""
  if not len(x):
    raise SAEError('a loss of no tokens', cause='a mean over an empty batch is NaN')
