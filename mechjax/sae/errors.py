"""The one exception of this package, and the check that every setting passes.

It stands on the floor of the science because nothing below can raise it. Like every `MechjaxError` it says what
happened, where, the likely cause and the mend.
"""

from typing import Any

from mechjax.errors import MechjaxError


class SAEError(MechjaxError, ValueError):
  """A dictionary, its settings and its data that do not go together."""


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
