"""Kinds of flags: conversion of the value of a field to and from a command line and a file.

Each kind has four functions. TEXT is the part of `--x=...` after the equals sign; DATA is a value of JSON or TOML: a
bool, a number, a string, a list, null. Both round-trip: `from_text(to_text(value)) == value`, and likewise for data.

Sharp edges: unlike in Python, an integer counts as a float here, and a bool does not count as an int. TOML has no null,
so each format passes its own value for None as `null`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

NONE = 'none'
"""The text of None."""


class FlagKind(abc.ABC):
  """The kind of value that a field holds.

  Attributes:
    expected: description of valid values, which follows 'should be' in messages.
  """

  expected: str

  @abc.abstractmethod
  def from_text(self, text: str) -> Any:
    """Reads a value from a command line; ValueError if the text is not valid."""

  @abc.abstractmethod
  def to_text(self, value: Any) -> str:
    """Writes a value as on a command line."""

  @abc.abstractmethod
  def from_data(self, data: Any, null: Any = None) -> Any:
    """Reads a value from a file, in which `null` stands for None; ValueError if the data are not valid."""

  @abc.abstractmethod
  def to_data(self, value: Any) -> Any:
    """Writes a value as data of JSON."""

  def make_error(self) -> ValueError:
    """Makes the error for a value that is not valid."""
    return ValueError(f'should be {self.expected}')


@dataclasses.dataclass(frozen=True)
class Scalar(FlagKind):
  """A single value of one type.

  Attributes:
    make: makes the value from text or data; raises ValueError or KeyError if that is impossible.
    data_types: types of data that are accepted.
    expected: description of valid values.
  """

  make: Callable[[Any], Any]
  data_types: tuple[type, ...]
  expected: str

  def from_text(self, text: str) -> Any:
    try:
      return self.make(text)
    except (ValueError, KeyError) as e:
      raise self.make_error() from e

  def to_text(self, value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

  def from_data(self, data: Any, null: Any = None) -> Any:
    if type(data) not in self.data_types:
      raise self.make_error()
    return self.make(data)

  def to_data(self, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@dataclasses.dataclass(frozen=True)
class Choice(FlagKind):
  """One of a few values.

  Attributes:
    options: pairs of the data of each option and its value.
  """

  options: tuple[tuple[Any, Any], ...]

  @property
  def expected(self) -> str:  # type: ignore[override]
    return f'one of {", ".join(str(data) for data, _ in self.options)}'

  def from_text(self, text: str) -> Any:
    return self._find(lambda data: str(data) == text)

  def to_text(self, value: Any) -> str:
    return str(self.to_data(value))

  def from_data(self, data: Any, null: Any = None) -> Any:
    return self._find(lambda own: type(own) is type(data) and own == data)

  def to_data(self, value: Any) -> Any:
    for data, own in self.options:
      if own == value:
        return data
    raise self.make_error()

  def _find(self, fits: Callable[[Any], bool]) -> Any:
    for data, value in self.options:
      if fits(data):
        return value
    raise self.make_error()


@dataclasses.dataclass(frozen=True)
class Maybe(FlagKind):
  """A value of another kind, or None."""

  kind: FlagKind

  @property
  def expected(self) -> str:  # type: ignore[override]
    return f'{NONE}, or {self.kind.expected}'

  def from_text(self, text: str) -> Any:
    return None if text == NONE else self._read(self.kind.from_text, text)

  def to_text(self, value: Any) -> str:
    return NONE if value is None else self.kind.to_text(value)

  def from_data(self, data: Any, null: Any = None) -> Any:
    return None if data == null else self._read(self.kind.from_data, data)

  def to_data(self, value: Any) -> Any:
    return None if value is None else self.kind.to_data(value)

  def _read(self, read: Callable[[Any], Any], given: Any) -> Any:
    try:
      return read(given)
    except ValueError as e:
      raise self.make_error() from e


@dataclasses.dataclass(frozen=True)
class Several(FlagKind):
  """A tuple.

  Attributes:
    kinds: kinds of its members.
    variadic: whether it has any number of members, all of one kind.
  """

  kinds: tuple[FlagKind, ...]
  variadic: bool

  @property
  def expected(self) -> str:  # type: ignore[override]
    if self.variadic:
      return f'a list, each {self.kinds[0].expected}'
    return f'a list of {len(self.kinds)}: {", ".join(kind.expected for kind in self.kinds)}'

  def from_text(self, text: str) -> Any:
    parts = text.split(',') if text else []
    return tuple(kind.from_text(part) for kind, part in zip(self._match_kinds(parts), parts))

  def to_text(self, value: Any) -> str:
    return ','.join(kind.to_text(part) for kind, part in zip(self._match_kinds(value), value))

  def from_data(self, data: Any, null: Any = None) -> Any:
    if not isinstance(data, list):
      raise self.make_error()
    return tuple(kind.from_data(part, null) for kind, part in zip(self._match_kinds(data), data))

  def to_data(self, value: Any) -> Any:
    return [kind.to_data(part) for kind, part in zip(self._match_kinds(value), value)]

  def _match_kinds(self, parts: typing.Sized) -> tuple[FlagKind, ...]:
    kinds = self.kinds * len(parts) if self.variadic else self.kinds
    if len(kinds) != len(parts):
      raise self.make_error()
    return kinds


_TRUTH = {'true': True, 'false': False}
_SCALARS = {
  bool: Scalar(
    lambda given: given if given is True or given is False else _TRUTH[given.lower()],
    (bool,),
    'true or false',
  ),
  int: Scalar(int, (int,), 'an integer'),
  float: Scalar(float, (int, float), 'a number'),
  str: Scalar(str, (str,), 'a string'),
  Path: Scalar(Path, (str,), 'a path'),
}
SUPPORTED = 'bool, int, float, str, Path, Literal, Enum, tuples of these, each optionally None'


def kind_of(annotation: Any) -> FlagKind | None:
  """Finds the kind of a field.

  Args:
    annotation: the type of the field, resolved.

  Returns:
    Its kind, or None if the type is not supported; `SUPPORTED` lists the types.
  """
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Literal:
    return Choice(tuple((value, value) for value in args))
  if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
    return Choice(tuple(annotation.__members__.items()))
  if origin in (typing.Union, types.UnionType):
    others = [arg for arg in args if arg is not type(None)]
    kind = kind_of(others[0]) if len(others) == 1 else None
    return None if kind is None else Maybe(kind)
  if origin is tuple:
    variadic = len(args) == 2 and args[1] is Ellipsis
    members = [kind_of(arg) for arg in (args[:1] if variadic else args)]
    if any(kind is None or isinstance(kind, Several) for kind in members):
      return None
    return Several(tuple(kind for kind in members if kind is not None), variadic)
  return _SCALARS.get(annotation)
