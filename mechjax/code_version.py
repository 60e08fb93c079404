"""Version of the code that functions run: a number that changes whenever a patch is installed or removed.

A patch in place exchanges the code of functions and keeps the function objects. A cache of something that was made
from their code (a staged program, a trace of JAX) stores this number with it, and makes the entry again when the
number differs. The patcher changes the number; it works without JAX, and so does this file.
"""

from __future__ import annotations

import itertools

_numbers = itertools.count(1)
_now = 0


def now() -> int:
  """The version number of the code that functions run at this moment."""
  return _now


def change() -> None:
  """Takes a new number, because functions run other code from now on."""
  global _now
  _now = next(_numbers)
