"""Typed values from the descriptions in model files: a config.json, the header of a GGUF file.

A setting of the wrong type seldom fails where it is read. "32" is a true condition and a wrong product, the text
"false" is true, an infinite rotary base silently rotates nothing. So every value is read by one of the getters of
`Values`, which state the expected type, and the error names the file, the key, the value and the expected value.

    s = Values(described, 'the config.json of a llama')
    s.integer('hidden_size')                 required
    s.number('rms_norm_eps', 1e-6)           with a default for a missing key or null
    s.check_all_taken(harmless)              an error if a value was not taken

Sharp edges: integers are numbers too, booleans are neither. The maximum of sizes is 2**31 - 1, because arrays are
indexed by int32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mechjax import errors

MAX_INT = 2**31 - 1
# About the largest float32; settings are computed in float32.
_MAX_NUMBER = 3.4e38


class Values:
  """The values of one description, each taken once and checked when it is taken.

  Attributes:
    left: values that have not been taken yet.
    where: name of the description in messages.
  """

  def __init__(self, found: Mapping[str, Any], where: str):
    """Starts with no value taken.

    Raises:
      WeightsError: the description is not an object.
    """
    if not isinstance(found, Mapping):
      raise errors.WeightsError(f'{where} is {found!r:.100}; expected an object')
    self.left = dict(found)
    self.where = where

  def integer(self, key: str, *default: Any, minimum: int = 1, maximum: int = MAX_INT) -> Any:
    """An integer from `minimum` to `maximum`."""
    wanted = f'an integer from {minimum} to {maximum}'
    return self._take(key, default, lambda v: _is_integer(v) and minimum <= v <= maximum, wanted)

  def number(self, key: str, *default: Any, minimum: float = 0.0, zero: bool = False) -> Any:
    """A finite number over `minimum`, as a float; `zero` allows `minimum` itself.

    Raises:
      WeightsError: as in all getters: the value is missing without a default, or has another type or range.
    """

    def is_good(value: Any) -> bool:
      if not (_is_integer(value) or isinstance(value, float)):
        return False
      return (minimum <= value if zero else minimum < value) and value <= _MAX_NUMBER

    wanted = f'a finite number {"from" if zero else "over"} {minimum:g}{" on" if zero else ""}'
    value = self._take(key, default, is_good, wanted)
    return float(value) if _is_integer(value) else value

  def flag(self, key: str, *default: Any) -> Any:
    """True or false."""
    return self._take(key, default, lambda v: isinstance(v, bool), 'true or false')

  def string(self, key: str, *default: Any, known: Collection[str] = ()) -> Any:
    """A string, one of `known` if it is not empty."""
    wanted = f'one of {sorted(known)}' if known else 'a string'
    return self._take(
      key, default, lambda v: isinstance(v, str) and (not known or v in known), wanted
    )

  def strings(self, key: str, *default: Any) -> Any:
    """A list of strings."""
    return self._take(key, default, _is_strings, 'a list of strings')

  def mapping(self, key: str, *default: Any) -> Any:
    """An object inside the description."""
    return self._take(key, default, lambda v: isinstance(v, Mapping), 'an object')

  def ids(self, key: str, n_vocab: int) -> tuple[int, ...]:
    """Token ids, given as one id or a list; empty if the key is missing or null."""

    def is_good(value: Any) -> bool:
      several = value if isinstance(value, list) else [value]
      return all(_is_integer(i) and 0 <= i < n_vocab for i in several)

    wanted = f'a token id from 0 to {n_vocab - 1}, or a list of them'
    found = self._take(key, ([],), is_good, wanted)
    return tuple(found if isinstance(found, list) else [found])

  def or_null(self, getter: Callable[..., Any], key: str, default: Any) -> Any:
    """The value of a getter, or None if the description has null, which differs here from a missing key."""
    if key in self.left and self.left[key] is None:
      return self.left.pop(key)
    return getter(key, default)

  def check_supported(self, key: str, *allowed: Any) -> None:
    """Raises a WeightsError if a value is not supported by the decoder; a missing key is supported."""
    value = self.left.pop(key, allowed[0])
    if not any(_same(value, a) for a in allowed):
      raise errors.WeightsError(
        f'{self.where} has {key}={value!r:.100}',
        cause=f'the decoder supports only {allowed} for {key}',
      )

  def check_all_taken(self, harmless: Collection[str] = ()) -> None:
    """Raises a WeightsError if a value has not been taken, is not null and is not known to be harmless."""
    unknown = {k: v for k, v in self.left.items() if v is not None and k not in harmless}
    if unknown:
      raise errors.WeightsError(
        f'{self.where} has unknown settings: {unknown!r:.500}',
        cause='a variant of the family that the decoder does not support, or a newer transformers',
        hint='if they have no effect, remove them from the dict; otherwise use upstream code',
      )

  def _take(
    self, key: str, default: tuple[Any, ...], is_good: Callable[[Any], bool], wanted: str
  ) -> Any:
    value = self.left.pop(key, None)
    if value is None and default:
      return default[0]
    if value is None:
      raise errors.WeightsError(
        f'{self.where} has no {key!r}',
        where=f'the nearest: {near}' if (near := errors.nearest(key, self.left)) else None,
        cause='the file describes another architecture than expected',
      )
    if not is_good(value):
      raise errors.WeightsError(
        f'{self.where} has {key}={value!r:.100}; expected {wanted}',
        cause='a damaged file, or one written by hand',
      )
    return value


def _same(value: Any, allowed: Any) -> bool:
  """Whether two settings are equal; 1 is not equal to true, and a list is not equal to any allowed value."""
  plain = isinstance(value, (int, float, str, type(None)))
  return plain and isinstance(value, bool) == isinstance(allowed, bool) and value == allowed


def _is_integer(value: Any) -> bool:
  return type(value) is int


def _is_strings(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(string, str) for string in value)
