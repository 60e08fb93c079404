"""Typed values out of a description that somebody else wrote: a config.json, the header of a GGUF file.

A setting of the wrong type seldom fails where it is read. "32" is a true condition and a wrong product, the text
"false" is true, a base of infinity turns nothing and nobody notices. So every value passes one of the getters of
`Values`, which say what is wanted, and the error names the file, the key, the value and what would be right.

    s = Values(described, 'the config.json of a llama')
    s.integer('hidden_size')                 must be there
    s.number('rms_norm_eps', 1e-6)           a default where it is missing or null
    s.finish(harmless)                       whatever was not taken is an error

Sharp edges: integers count as numbers, booleans as neither. Sizes end at 2**31 - 1, because arrays are indexed by
int32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mechjax import errors

MAX_INT = 2**31 - 1
# The largest float32, in which settings are computed.
_MAX_NUMBER = 3.4e38


class Values:
  """The values of one description, each taken once and checked when it is taken.

  Attributes:
    left: what has not been taken yet.
    where: what the values belong to, for messages.
  """

  def __init__(self, found: Mapping[str, Any], where: str):
    """Starts with nothing taken.

    Raises:
      WeightsError: the description is not an object.
    """
    if not isinstance(found, Mapping):
      raise errors.WeightsError(f'{where} is {found!r:.100}; an object is wanted')
    self.left = dict(found)
    self.where = where

  def integer(self, key: str, *default: Any, minimum: int = 1, maximum: int = MAX_INT) -> Any:
    """An integer from `minimum` to `maximum`."""
    wanted = f'an integer from {minimum} to {maximum}'
    return self._take(key, default, lambda v: _is_integer(v) and minimum <= v <= maximum, wanted)

  def number(self, key: str, *default: Any, minimum: float = 0.0, zero: bool = False) -> Any:
    """A finite number over `minimum`, as a float; `zero` allows `minimum` itself.

    Raises:
      WeightsError: as all getters: it is missing and has no default, or is something else.
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
    """A text, one of `known` if there are any."""
    wanted = f'one of {sorted(known)}' if known else 'a text'
    return self._take(
      key, default, lambda v: isinstance(v, str) and (not known or v in known), wanted
    )

  def strings(self, key: str, *default: Any) -> Any:
    """A list of texts."""
    return self._take(key, default, _is_strings, 'a list of texts')

  def mapping(self, key: str, *default: Any) -> Any:
    """An object inside the description."""
    return self._take(key, default, lambda v: isinstance(v, Mapping), 'an object')

  def ids(self, key: str, n_vocab: int) -> tuple[int, ...]:
    """Token ids: one, a list of them, or none where the key is missing or null."""

    def is_good(value: Any) -> bool:
      several = value if isinstance(value, list) else [value]
      return all(_is_integer(i) and 0 <= i < n_vocab for i in several)

    wanted = f'a token id from 0 to {n_vocab - 1}, or a list of them'
    found = self._take(key, ([],), is_good, wanted)
    return tuple(found if isinstance(found, list) else [found])

  def or_null(self, getter: Callable[..., Any], key: str, default: Any) -> Any:
    """What a getter finds; None if the description has null, which then differs from a missing key."""
    if key in self.left and self.left[key] is None:
      return self.left.pop(key)
    return getter(key, default)

  def check_supported(self, key: str, *allowed: Any) -> None:
    """Refuses a value that is not computed here; a key that is missing is fine."""
    value = self.left.pop(key, allowed[0])
    if not any(_same(value, a) for a in allowed):
      raise errors.WeightsError(
        f'{self.where} has {key}={value!r:.100}',
        cause=f'this decoder computes {key} in {allowed} only',
      )

  def check_all_taken(self, harmless: Collection[str] = ()) -> None:
    """Refuses values that have not been taken, are not null and are not known to be harmless."""
    unknown = {k: v for k, v in self.left.items() if v is not None and k not in harmless}
    if unknown:
      raise errors.WeightsError(
        f'{self.where} has settings that are not understood: {unknown!r:.500}',
        cause='a variant of the family that this decoder does not compute, or a newer transformers',
        hint='if they change nothing, remove them from the dict; otherwise use upstream code',
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
        cause='the file describes another architecture than the one asked for',
      )
    if not is_good(value):
      raise errors.WeightsError(
        f'{self.where} has {key}={value!r:.100}; {wanted} is wanted',
        cause='a damaged file, or one written by hand',
      )
    return value


def _same(value: Any, allowed: Any) -> bool:
  """Whether two settings are equal; 1 is not true, and a list equals nothing that is allowed."""
  plain = isinstance(value, (int, float, str, type(None)))
  return plain and isinstance(value, bool) == isinstance(allowed, bool) and value == allowed


def _is_integer(value: Any) -> bool:
  return type(value) is int


def _is_strings(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(string, str) for string in value)
