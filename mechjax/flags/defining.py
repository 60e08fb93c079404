"""Definition of an absl flag for each leaf of a config.

absl parses the command line, suggests a name where one is misspelt, and prints `--help`; this file defines the flags.
Only flags that were given count, so for a flag that was not given absl shows the default, whatever the config file
says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from absl import flags

from mechjax.errors import FlagsError
from mechjax.flags import config_files
from mechjax.flags.kinds import FlagKind, Maybe, Several, kind_of
from mechjax.flags.leaves import REQUIRED, Leaf, leaves

flags.disclaim_key_flags()  # flags belong to the module that calls define, and appear in its help
Config = TypeVar('Config')
FILE = 'config'
"""Name of the flag for the config file."""


@dataclasses.dataclass(frozen=True)
class Handle(Generic[Config]):
  """Defined flags, from which a config is read once they are parsed.

  Attributes:
    config_class: the dataclass.
    leaves: its fields, flattened.
    flag_values: the absl object that holds the flags.
  """

  config_class: type[Config]
  leaves: tuple[Leaf, ...]
  flag_values: flags.FlagValues

  def value(self) -> Config:
    """Returns the config: flags that were given, else values of the file, else defaults.

    Raises:
      FlagsError: the file cannot be read, names a field that does not exist, or has a value of another type; a field
        without a default is given nowhere.
      UnparsedFlagAccessError: flags are not parsed yet.
      Whatever `__post_init__` of the config does.
    """
    file = getattr(self.flag_values, FILE)
    given = {} if file is None else config_files.read(file, self.leaves)
    flag_of = {leaf.path: self.flag_values[leaf.name] for leaf in self.leaves}
    given |= {path: flag.value for path, flag in flag_of.items() if not flag.using_default_value}
    where = 'the command line' if file is None else f'the command line and {file}'
    return config_files.complete(self.config_class, self.leaves, given, where, _spell)


def define(
  config_class: type[Config],
  defaults: Config | None = None,
  flag_values: flags.FlagValues = flags.FLAGS,
) -> Handle[Config]:
  """Defines a flag for each field of a dataclass and of the dataclasses inside it, and `--config`.

  Args:
    config_class: the dataclass.
    defaults: an instance with the values of flags that are not given; None for the defaults of the class. Fields
      without a default must then be given.
    flag_values: the absl object in which flags are defined.

  Returns:
    A handle whose `value` is the config, after flags have been parsed.

  Raises:
    FlagsError: two fields of one name, a field without an explanation or of a type that no flag can hold.
    DuplicateFlagError: a flag of that name exists already.
  """
  schema = leaves(config_class, defaults)
  _check_unique_names(config_class, schema)
  flags.DEFINE_string(FILE, None, _explain_file(schema), flag_values)
  for leaf in schema:
    flags.DEFINE_flag(_make_flag(leaf), flag_values)
    if leaf.former_name and leaf.former_name not in flag_values:
      # Under a module of its own, --help does not list it.
      flags.DEFINE_flag(_make_former_flag(leaf), flag_values, f'{__name__}.former_names')
  return Handle(config_class, schema, flag_values)


def _spell(leaf: Leaf) -> str:
  return f'--{leaf.name}'


def _explain_file(schema: Iterable[Leaf]) -> str:
  """Help of `--config`, with the tables of the file and an example of each."""
  first: dict[str, str] = {}
  for leaf in schema:
    if len(leaf.path) > 1:
      first.setdefault('.'.join(leaf.path[:-1]), leaf.name)
  tables = ', '.join(f'[{table}] as for {name}' for table, name in first.items())
  text = 'A file of TOML or JSON with values for these flags'
  return f'{text}, some in tables: {tables}.' if tables else f'{text}.'


def _check_unique_names(config_class: type, schema: Iterable[Leaf]) -> None:
  names = {FILE: 'the config file'}
  for leaf in schema:
    if leaf.name in names:
      raise FlagsError(
        f'one flag --{leaf.name} for two fields: {names[leaf.name]} and {leaf.dotted}',
        where=f'{config_class.__module__}.{config_class.__qualname__}',
        hint='give one of them another name',
      )
    names[leaf.name] = leaf.dotted


def _make_flag(leaf: Leaf) -> flags.Flag:
  note = ''
  if leaf.default is None or leaf.default is REQUIRED:  # absl prints all other defaults
    note = '\n(must be given)' if leaf.default is REQUIRED else '\n(default: none)'
  return flags.Flag(
    parser=_Parser(leaf.kind),
    serializer=_Serializer(leaf.kind),
    name=leaf.name,
    default=None if leaf.default is REQUIRED else leaf.default,
    help_string=leaf.explanation + note,
    boolean=_unwrap(leaf.kind) == kind_of(bool),
  )


def _make_former_flag(leaf: Leaf) -> flags.Flag:
  """A flag by the former name of a field, each of whose values is an error that gives the new name."""
  return flags.Flag(
    parser=_FormerParser(leaf),
    serializer=None,
    name=leaf.former_name,
    default=None,
    help_string=f'Former name of {_spell(leaf)}.',
  )


def _unwrap(kind: FlagKind) -> FlagKind:
  return kind.kind if isinstance(kind, Maybe) else kind


class _Parser(flags.ArgumentParser):
  """Parses strings; other values (defaults, and values that a test sets) stay as they are."""

  def __init__(self, kind: FlagKind):
    commas = ', separated by commas' if isinstance(_unwrap(kind), Several) else ''
    self.kind, self.syntactic_help = kind, kind.expected + commas

  def parse(self, argument: Any) -> Any:
    return self.kind.from_text(argument) if type(argument) is str else argument

  def flag_type(self) -> str:
    return self.kind.expected


class _FormerParser(flags.ArgumentParser):
  """Refuses every value."""

  def __init__(self, leaf: Leaf):
    self.leaf, self.syntactic_help = leaf, ''

  def parse(self, argument: Any) -> Any:
    raise ValueError(f'it is called {_spell(self.leaf)} now')


class _Serializer(flags.ArgumentSerializer):
  """Writes a value as on a command line."""

  def __init__(self, kind: FlagKind):
    self.kind = kind

  def serialize(self, value: Any) -> str:
    return self.kind.to_text(value)
