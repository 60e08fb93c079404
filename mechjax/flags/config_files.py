"""Words: a config as JSON, and back from JSON or TOML, with every mistake named.

    path.write_text(as_json(config))
    config == from_json(Config, path.read_text(), where=path)
    differences(config, other)                                     ['optimisation.steps: 1000, 2000']

A file mirrors the dataclass: a table inside is a dataclass inside. A key that is no field, a value of another type and
a text that is neither TOML nor JSON are errors that name the file.

Sharp edge: numbers that are not finite are written as Python does, which strict readers of JSON refuse.
"""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mechjax.errors import FlagsError, nearest
from mechjax.flags.kinds import NONE
from mechjax.flags.leaves import REQUIRED, Leaf, Names, build, leaves, values_of

Config = TypeVar('Config')


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON, no key of which is there twice."""
  data: dict[str, Any] = {}
  for key, value in pairs:
    if key in data:
      raise ValueError(f'the key {key!r} is there twice')
    data[key] = value
  return data


_FORMATS: dict[str, tuple[Callable[[str], Any], Any]] = {
  '.toml': (tomllib.loads, NONE),
  '.json': (functools.partial(json.loads, object_pairs_hook=_build_object), None),
}
"""By the end of a file's name: what reads it, and what it says for null."""


def as_json(config: Any) -> str:
  """A config as a text of JSON.

  Args:
    config: a dataclass.

  Raises:
    FlagsError: a field that cannot be a flag either.
  """
  data: dict[str, Any] = {}
  for leaf in leaves(type(config), config):
    table = data
    for name in leaf.path[:-1]:
      table = table.setdefault(name, {})
    table[leaf.name] = leaf.kind.to_data(leaf.default)
  return json.dumps(data, indent=2) + '\n'


def from_json(config_class: type[Config], text: str, where: object = 'JSON') -> Config:
  """The config that a text of JSON says; what it leaves out has its default.

  Args:
    config_class: a dataclass.
    text: an object of JSON.
    where: what it comes from, such as the path of a file, for messages.

  Raises:
    FlagsError: it is no JSON; a key that is no field; a value of another type; a field that has no default and is
      left out.
    Whatever `__post_init__` of the config does.
  """
  own = leaves(config_class)
  return complete(config_class, own, _parse(own, text, '.json', where), str(where))


def differences(a: Any, b: Any) -> list[str]:
  """In which fields two configs of one class differ.

  Args:
    a: one.
    b: the other.

  Returns:
    'field: value of a, value of b' for each field, with the names of the dataclasses it is in.

  Raises:
    FlagsError: they are of two classes, or have a field that cannot be a flag.
  """
  if type(a) is not type(b):
    raise FlagsError(f'a {type(a).__name__} and a {type(b).__name__} have no fields in common')
  values = values_of(b)
  return [
    f'{leaf.dotted}: {leaf.kind.to_text(leaf.default)}, {leaf.kind.to_text(values[leaf.path])}'
    for leaf in leaves(type(a), a)
    if leaf.default != values[leaf.path]
  ]


def read(path: str | os.PathLike[str], own: Iterable[Leaf]) -> dict[Names, Any]:
  """What a file says.

  Args:
    path: of TOML or JSON, as its name says.
    own: the leaves that it may speak of.

  Returns:
    The values of leaves that it names.

  Raises:
    FlagsError: it cannot be read or is of another format; as `from_json`.
  """
  suffix = os.path.splitext(path)[1]
  if suffix not in _FORMATS:
    raise FlagsError(f'{path} is no config', hint=f'its name ends with {" or ".join(_FORMATS)}')
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as e:
    raise FlagsError(f'{path} cannot be read: {e}', where=f'in {os.getcwd()}') from e
  return _parse(own, text, suffix, path)


def complete(
  config_class: type[Config], own: Iterable[Leaf], given: Mapping[Names, Any], where: str
) -> Config:
  """The config of what has been said, and of defaults.

  Args:
    config_class: its class.
    own: its leaves.
    given: values.
    where: they have been said.

  Raises:
    FlagsError: a leaf that has no default, and of which nothing has been said.
  """
  values = {leaf.path: leaf.default for leaf in own} | dict(given)
  if missing := ['.'.join(path) for path, value in values.items() if value is REQUIRED]:
    raise FlagsError(f'{", ".join(missing)} of {config_class.__name__} must be given', where=where)
  return build(config_class, values)


def _parse(own: Iterable[Leaf], text: str, suffix: str, where: object) -> dict[Names, Any]:
  """Values of leaves from the text of a file."""
  loads, null = _FORMATS[suffix]
  try:
    data = loads(text)
  except (ValueError, RecursionError) as e:
    raise FlagsError(f'{where} is no {suffix[1:].upper()}: {e}') from e
  by_path = {leaf.path: leaf for leaf in own}
  tables = {path[:n] for path in by_path for n in range(len(path))}
  return {
    path: _parse_value(by_path[path], value, where, null)
    for path, value in _walk(data, (), tables, by_path, where)
  }


def _walk(
  data: Any, path: Names, tables: set[Names], by_path: Mapping[Names, Leaf], where: object
) -> Iterator[tuple[Names, Any]]:
  """The words of leaves, with their paths."""
  if not isinstance(data, dict):
    raise FlagsError(
      f'{".".join(path) or "the whole"}={data!r:.50} should be a table', where=f'{where}'
    )
  for key, value in data.items():
    own = (*path, key)
    if own in tables:
      yield from _walk(value, own, tables, by_path, where)
    elif own in by_path:
      yield own, value
    else:
      known = {name[-1]: '.'.join(name) for name in (*by_path, *(tables - {()}))}
      close = [known[name] for name in nearest(key, known)]
      raise FlagsError(
        f'no field {".".join(own)!r:.100}',
        where=f'{where}',
        hint=f'perhaps {", ".join(close)}' if close else f'there are {", ".join(known.values())}',
      )


def _parse_value(leaf: Leaf, value: Any, where: object, null: Any) -> Any:
  try:
    return leaf.kind.from_data(value, null)
  except ValueError as e:
    raise FlagsError(f'{leaf.dotted}={value!r:.100} {e}', where=f'{where}') from e
