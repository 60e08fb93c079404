"""Kinds of values: how what a field holds is written on a command line and in a file, and read back.

Four functions for each kind. TEXT is what stands behind `--x=`; a WORD is what JSON and TOML have: a bool, a number, a
string, a list, null. Both ways lead back: `from_text(to_text(value)) == value`, and so for words.

Sharp edges: a whole number is no float in Python, and is one here; a bool is an int in Python, and is none here. A
word of null is `null`, which TOML lacks, so its files say something else.
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
  """What one field takes.

  Attributes:
    expected: in words, to go on behind 'should be'.
  """

  expected: str

  @abc.abstractmethod
  def from_text(self, text: str) -> Any:
    """The value that a command line says; ValueError if it says none."""

  @abc.abstractmethod
  def to_text(self, value: Any) -> str:
    """The value as a command line says it."""

  @abc.abstractmethod
  def from_data(self, data: Any, null: Any = None) -> Any:
    """The value that a file says, in which `null` means None; ValueError if it says none."""

  @abc.abstractmethod
  def to_data(self, value: Any) -> Any:
    """The value as JSON says it."""

  def make_error(self) -> ValueError:
    """What is raised about anything else."""
    return ValueError(f'should be {self.expected}')


@dataclasses.dataclass(frozen=True)
class Scalar(FlagKind):
  """A single value of one type.

  Attributes:
    make: the value from a text or word; a ValueError or KeyError says that there is none.
    data_types: types of words that are taken.
    expected: in words.
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
    options: the word for each, and the value.
  """

  options: tuple[tuple[Any, Any], ...]

  @property
  def expected(self) -> str:  # type: ignore[override]
    return f'one of {", ".join(str(data) for data, _ in self.options)}'

  def from_text(self, text: str) -> Any:
    return self._of(lambda data: str(data) == text)

  def to_text(self, value: Any) -> str:
    return str(self.to_data(value))

  def from_data(self, data: Any, null: Any = None) -> Any:
    return self._of(lambda own: type(own) is type(data) and own == data)

  def to_data(self, value: Any) -> Any:
    for data, own in self.options:
      if own == value:
        return data
    raise self.make_error()

  def _of(self, fits: Callable[[Any], bool]) -> Any:
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
    return None if text == NONE else self._of(self.kind.from_text, text)

  def to_text(self, value: Any) -> str:
    return NONE if value is None else self.kind.to_text(value)

  def from_data(self, data: Any, null: Any = None) -> Any:
    return None if data == null else self._of(self.kind.from_data, data)

  def to_data(self, value: Any) -> Any:
    return None if value is None else self.kind.to_data(value)

  def _of(self, read: Callable[[Any], Any], given: Any) -> Any:
    try:
      return read(given)
    except ValueError as e:
      raise self.make_error() from e


@dataclasses.dataclass(frozen=True)
class Several(FlagKind):
  """A tuple.

  Attributes:
    kinds: of its members.
    variadic: whether there is one kind, and any number of members of it.
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
  str: Scalar(str, (str,), 'a text'),
  Path: Scalar(Path, (str,), 'a path'),
}
SUPPORTED = 'bool, int, float, str, Path, Literal, Enum, tuples of these, each perhaps None'


def kind_of(annotation: Any) -> FlagKind | None:
  """What a field takes.

  Args:
    annotation: the type of the field, resolved.

  Returns:
    Its kind, or None if there is none; `SUPPORTED` says for what there is.
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
