"""Which code functions run now: a number that changes whenever a patch is installed or taken back.

A patch in place exchanges what functions run and leaves the functions what they are. Whoever keeps something that
was made from their code (a staged program, what JAX has traced) keeps this number with it, and makes it anew when
the number is another one. The patcher counts; it needs no JAX, and so neither does this file.
"""

from __future__ import annotations

import itertools

_numbers = itertools.count(1)
_now = 0


def now() -> int:
  """The number that stands for the code that functions run at this moment."""
  return _now


def change() -> None:
  """Records that functions run other code from now on."""
  global _now
  _now = next(_numbers)
