"""Leaves of a config: the fields of a dataclass and of the dataclasses inside it, flattened.

A config is a tree whose branches are dataclasses and whose leaves hold values. Flags, files and comparisons all work
on the leaves, each with the path of names that leads to it, and `build` restores the tree:

    leaves(Config)[3]             Leaf(path=('optimisation', 'steps'), default=1000, ...)
    values_of(config)             {('optimisation', 'steps'): 1000, ...}
    build(Config, values)         Config(optimisation=Optimisation(steps=1000), ...)

Sharp edge: the help of a field is read from `Attributes:` in the docstring of the class that declares it, or of one
that inherits it. A field that is not explained there is an error, because its flag would not be explained either.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from mechjax.errors import FlagsError
from mechjax.flags.kinds import SUPPORTED, FlagKind, kind_of

Names = tuple[str, ...]
REQUIRED: Any = dataclasses.MISSING
"""The default of a field that must be given."""
_FORMER = 'former_name'


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A field that holds a value.

  Attributes:
    path: names of the fields that lead to it, with its own name last.
    kind: the kind of its value.
    explanation: its help text.
    default: its value if it is not given, or `REQUIRED`.
    former_name: the name that it had in earlier versions, which a config file may still have; '' if it had no other.
  """

  path: Names
  kind: FlagKind
  explanation: str
  default: Any
  former_name: str = ''

  @property
  def name(self) -> str:
    """Its own name."""
    return self.path[-1]

  @property
  def dotted(self) -> str:
    """Its path, joined by dots."""
    return '.'.join(self.path)


def with_former_name(default: Any, former_name: str) -> Any:
  """A field of a config that had another name before; a config file with that name is an error that gives the new one.

  Args:
    default: its default.
    former_name: its name before.
  """
  return dataclasses.field(default=default, metadata={_FORMER: former_name})


def leaves(config_class: type, defaults: Any = None) -> tuple[Leaf, ...]:
  """All leaves, in the order in which they are declared.

  Args:
    config_class: a dataclass.
    defaults: one of its instances, whose values are the defaults; None for those of the class.

  Raises:
    FlagsError: a field of a type that is not supported, or without an explanation.
  """
  return tuple(_leaves(config_class, REQUIRED if defaults is None else defaults, ()))


def values_of(config: Any) -> dict[Names, Any]:
  """The value of each leaf; raises as `leaves`."""
  return {leaf.path: leaf.default for leaf in leaves(type(config), config)}


def build(config_class: type, values: Mapping[Names, Any]) -> Any:
  """Builds a config from the values of its leaves.

  Args:
    config_class: its class.
    values: the value of each leaf.

  Raises:
    Whatever its `__post_init__` does.
  """
  arguments = {}
  for field, annotation in _fields(config_class):
    if dataclasses.is_dataclass(annotation):
      below = {path[1:]: value for path, value in values.items() if path[0] == field.name}
      arguments[field.name] = build(typing.cast(type, annotation), below)
    else:
      arguments[field.name] = values[field.name,]
  return config_class(**arguments)


def _leaves(config_class: type, defaults: Any, path: Names) -> Iterator[Leaf]:
  if type(defaults) is not config_class and defaults is not REQUIRED:
    raise FlagsError(
      f'{".".join(path) or "defaults"} holds {defaults!r:.200}, not a {config_class.__name__}'
    )
  explanations = _explanations(config_class)
  for field, annotation in _fields(config_class):
    own, default = (*path, field.name), _default(field, defaults)
    if dataclasses.is_dataclass(annotation):
      yield from _leaves(typing.cast(type, annotation), default, own)
      continue
    where = f'{config_class.__module__}.{config_class.__qualname__}.{field.name}'
    if (kind := kind_of(annotation)) is None:
      raise FlagsError(
        f'no flag can hold a {annotation}', where=where, hint=f'one of {SUPPORTED}, or a dataclass'
      )
    if field.name not in explanations:
      raise FlagsError(
        f'the field {field.name!r} is not explained',
        where=where,
        hint="explain it under 'Attributes:' in the docstring of its class",
      )
    yield Leaf(own, kind, explanations[field.name], default, field.metadata.get(_FORMER, ''))


def _fields(config_class: type) -> list[tuple[dataclasses.Field, Any]]:
  """The fields that are arguments of `__init__`, and their types."""
  hints = typing.get_type_hints(config_class)
  return [(field, hints[field.name]) for field in dataclasses.fields(config_class) if field.init]


def _default(field: dataclasses.Field, defaults: Any) -> Any:
  if defaults is not REQUIRED:
    return getattr(defaults, field.name)
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def _explanations(config_class: type) -> dict[str, str]:
  """Explanations of attributes in the docstrings of a class and of its base classes."""
  found: dict[str, str] = {}
  for one in reversed(config_class.__mro__):
    found |= _attributes(inspect.cleandoc(one.__doc__ or ''))
  return found


def _attributes(docstring: str) -> dict[str, str]:
  """Parses the section `Attributes:` of a docstring, with each entry on one line."""
  _, _, section = f'\n{docstring}\n'.partition('\nAttributes:\n')
  entries: dict[str, str] = {}
  name, indent = '', 0
  for line in section.splitlines():
    if line and not line.startswith(' '):
      break
    depth = len(line) - len(line.lstrip())
    entry = re.match(r' +(\w+): ?(.*)', line)
    if entry and (not name or depth <= indent):
      name, indent = entry[1], depth
      entries[name] = entry[2]
    elif name:
      entries[name] = f'{entries[name]} {line.strip()}'.strip()
  return entries
