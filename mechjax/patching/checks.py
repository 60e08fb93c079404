"""Checks of arguments: an argument of another kind is refused by its name, before anything is computed.

The methods take node sets, pairs and metrics, and settings that are numbers and switches. Without a check a value of
another kind fails far from the call that passed it, or does not fail at all: 2.5 steps, or the text 'no' as a switch
that is on. Each check here names the argument and its value, and how to make the right one.

Sharp edge: these check kinds and ranges; whether arguments fit together is checked where they meet.
"""

from __future__ import annotations

import operator

import numpy as np

from mechjax.errors import PatchingError


def check_kind(name: str, value: object, kind: type, hint: str) -> None:
  """Raises PatchingError unless the argument `name` is of a class of this package."""
  if not isinstance(value, kind):
    raise PatchingError(
      f'{name} must be of the class {kind.__name__}, got {type(value).__name__}: {value!r:.100}',
      hint=hint,
    )


def check_integer(name: str, value: object, at_least: int) -> None:
  """Raises PatchingError unless the argument `name` is an integer (not a bool) of `at_least` or more."""
  try:
    number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
  except TypeError:
    number = None
  if number is None:
    raise PatchingError(f'{name} must be an integer, got {type(value).__name__}: {value!r:.100}')
  if number < at_least:
    raise PatchingError(f'{name} is {number}: it must be {at_least} or more')


def check_switch(name: str, value: object) -> None:
  """Raises PatchingError unless the argument `name` is True or False: every text counts as True, even 'no'."""
  if not isinstance(value, bool | np.bool_):
    raise PatchingError(f'{name} must be True or False, got {type(value).__name__}: {value!r:.100}')
