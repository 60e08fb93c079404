"""Checks of the settings of an experiment: one message for all, with the value and its class of errors.

check = functools.partial(check_setting, CircuitError)
check(self, 'context', self.context >= 3, 'at least 3: a loss needs a next token')
"""

from __future__ import annotations

from typing import Any

from mechjax.errors import MechjaxError


def check_setting(
  error: type[MechjaxError], settings: Any, name: str, good: bool, expected: str
) -> None:
  """Checks one setting.

  Args:
    error: class of the error.
    settings: dataclass of settings.
    name: name of the setting.
    good: whether its value is allowed.
    expected: description of the allowed values.

  Raises:
    MechjaxError: of the class `error`, if the value is not allowed; the message contains it.
  """
  if not good:
    raise error(f'{name}={getattr(settings, name)!r} should be {expected}')
