"""Config files: a config as JSON, and back from JSON or TOML, with an error for every mistake.

    path.write_text(as_json(config))
    config == from_json(Config, path.read_text(), where=path)
    differences(config, other)                                     ['optimisation.steps: 1000, 2000']

A file mirrors the dataclass: a table inside is a dataclass inside. A key that is not a field, a value of another type
and text that is not TOML or JSON raise errors that name the file.

Sharp edge: numbers that are not finite are written as Python writes them, which strict readers of JSON reject.
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
  """Builds an object of JSON; raises if a key occurs twice."""
  data: dict[str, Any] = {}
  for key, value in pairs:
    if key in data:
      raise ValueError(f'the key {key!r} occurs twice')
    data[key] = value
  return data


_FORMATS: dict[str, tuple[Callable[[str], Any], Any]] = {
  '.toml': (tomllib.loads, NONE),
  '.json': (functools.partial(json.loads, object_pairs_hook=_build_object), None),
}
"""Loader of each format and its value for None, keyed by the suffix of the file name."""


def as_json(config: Any) -> str:
  """Writes a config as JSON.

  Args:
    config: a dataclass.

  Raises:
    FlagsError: a field that cannot be a flag.
  """
  data: dict[str, Any] = {}
  for leaf in leaves(type(config), config):
    table = data
    for name in leaf.path[:-1]:
      table = table.setdefault(name, {})
    table[leaf.name] = leaf.kind.to_data(leaf.default)
  return json.dumps(data, indent=2) + '\n'


def from_json(config_class: type[Config], text: str, where: object = 'JSON') -> Config:
  """Reads a config from JSON; fields that are left out get their defaults.

  Args:
    config_class: a dataclass.
    text: an object of JSON.
    where: its origin, such as the path of a file, for messages.

  Raises:
    FlagsError: it is not JSON; a key is not a field; a value has another type; a field without a default is left out.
    Whatever `__post_init__` of the config does.
  """
  schema = leaves(config_class)
  return complete(config_class, schema, _parse(schema, text, '.json', where), str(where))


def differences(a: Any, b: Any) -> list[str]:
  """Lists the fields in which two configs of one class differ.

  Args:
    a: one.
    b: the other.

  Returns:
    'field: value of a, value of b' for each field, where the name of a field is its dotted path.

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


def read(path: str | os.PathLike[str], schema: Iterable[Leaf]) -> dict[Names, Any]:
  """Reads a config file.

  Args:
    path: the file; its suffix determines the format, TOML or JSON.
    schema: the leaves that it may set.

  Returns:
    The values of the leaves that it sets.

  Raises:
    FlagsError: it cannot be read or has another format; and as `from_json`.
  """
  suffix = os.path.splitext(path)[1]
  if suffix not in _FORMATS:
    raise FlagsError(
      f'{path} is not a config file', hint=f'its name ends with {" or ".join(_FORMATS)}'
    )
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as e:
    raise FlagsError(f'{path} cannot be read: {e}', where=f'in {os.getcwd()}') from e
  return _parse(schema, text, suffix, path)


def complete(
  config_class: type[Config],
  schema: Iterable[Leaf],
  given: Mapping[Names, Any],
  where: str,
  spell: Callable[[Leaf], str] = lambda leaf: leaf.dotted,
) -> Config:
  """Builds a config from the values that were given, and from defaults.

  Args:
    config_class: its class.
    schema: its leaves.
    given: values of leaves.
    where: origin of the values, for messages.
    spell: function that returns the name of a leaf as the user writes it.

  Raises:
    FlagsError: a leaf without a default is not given.
  """
  values = {leaf.path: leaf.default for leaf in schema} | dict(given)
  if missing := [spell(leaf) for leaf in schema if values[leaf.path] is REQUIRED]:
    raise FlagsError(f'{", ".join(missing)} of {config_class.__name__} must be given', where=where)
  return build(config_class, values)


def _parse(schema: Iterable[Leaf], text: str, suffix: str, where: object) -> dict[Names, Any]:
  """Parses the text of a file into values of leaves."""
  loads, null = _FORMATS[suffix]
  try:
    data = loads(text)
  except (ValueError, RecursionError) as e:
    raise FlagsError(f'{where} is not {suffix[1:].upper()}: {e}') from e
  by_path = {leaf.path: leaf for leaf in schema}
  tables = {path[:n] for path in by_path for n in range(len(path))}
  return {
    path: _parse_value(by_path[path], value, where, null)
    for path, value in _walk(data, (), tables, by_path, where)
  }


def _walk(
  data: Any, path: Names, tables: set[Names], by_path: Mapping[Names, Leaf], where: object
) -> Iterator[tuple[Names, Any]]:
  """Yields the data of leaves, with their paths."""
  if not isinstance(data, dict):
    raise FlagsError(
      f'{".".join(path) or "the file"}={data!r:.50} should be a table', where=f'{where}'
    )
  for key, value in data.items():
    child = (*path, key)
    if child in tables:
      yield from _walk(value, child, tables, by_path, where)
    elif child in by_path:
      yield child, value
    else:
      raise FlagsError(
        f'no field {".".join(child)!r:.100}',
        where=f'{where}',
        hint=_suggest(child, tables, by_path),
      )


def _suggest(path: Names, tables: set[Names], by_path: Mapping[Names, Leaf]) -> str:
  """A hint for a field that does not exist: its new name, the nearest names, or all names."""
  former = {leaf.former_name: leaf.dotted for leaf in by_path.values() if leaf.former_name}
  if path[-1] in former:
    return f'it is called {former[path[-1]]} now'
  known = {name[-1]: '.'.join(name) for name in (*by_path, *(tables - {()}))}
  close = [known[name] for name in nearest(path[-1], known)]
  return f'perhaps {", ".join(close)}' if close else f'there are {", ".join(known.values())}'


def _parse_value(leaf: Leaf, value: Any, where: object, null: Any) -> Any:
  try:
    return leaf.kind.from_data(value, null)
  except ValueError as e:
    raise FlagsError(f'{leaf.dotted}={value!r:.100} {e}', where=f'{where}') from e
