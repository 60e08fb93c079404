"""Defining: a flag of absl for each leaf of a config.

absl parses the command line, suggests a name where one is misspelt, and prints `--help`; this says what there is to
parse. Whether a flag was given decides whether its value counts, so the value that absl shows for one that was not
is the default, whatever a file says.
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

flags.disclaim_key_flags()  # they are flags of whoever defines them, and appear in that module's help
Config = TypeVar('Config')
FILE = 'config'
"""The flag of the file."""


@dataclasses.dataclass(frozen=True)
class Handle(Generic[Config]):
  """Flags that have been defined, and from which a config is read once they are parsed.

  Attributes:
    config_class: the dataclass.
    leaves: its fields, laid flat.
    flag_values: where the flags are.
  """

  config_class: type[Config]
  leaves: tuple[Leaf, ...]
  flag_values: flags.FlagValues

  def value(self) -> Config:
    """The config: flags that were given, else what the file says, else defaults.

    Raises:
      FlagsError: the file cannot be read, names a field that there is not, or has a value of another type; a field
        without a default is given nowhere.
      UnparsedFlagAccessError: flags are not parsed yet.
      Whatever `__post_init__` of the config does.
    """
    file = getattr(self.flag_values, FILE)
    given = {} if file is None else config_files.read(file, self.leaves)
    flag_of = {leaf.path: self.flag_values[leaf.name] for leaf in self.leaves}
    given |= {path: flag.value for path, flag in flag_of.items() if not flag.using_default_value}
    where = 'the command line' if file is None else f'the command line and {file}'
    return config_files.complete(self.config_class, self.leaves, given, where)


def define(
  config_class: type[Config],
  defaults: Config | None = None,
  flag_values: flags.FlagValues = flags.FLAGS,
) -> Handle[Config]:
  """Defines a flag for each field of a dataclass, of those inside too, and `--config`.

  Args:
    config_class: the dataclass.
    defaults: an instance with the values of flags that are not given; None for the defaults of the class. Fields
      that have none must then be given.
    flag_values: where flags are defined.

  Returns:
    What gives the config, after flags have been parsed.

  Raises:
    FlagsError: two fields of one name, a field without an explanation or of a type that no flag can hold.
    DuplicateFlagError: somebody else has defined a flag of that name.
  """
  own = leaves(config_class, defaults)
  _check_unique_names(config_class, own)
  flags.DEFINE_string(
    FILE, None, 'A file of TOML or JSON with values for these flags.', flag_values
  )
  for leaf in own:
    flags.DEFINE_flag(_make_flag(leaf), flag_values)
  return Handle(config_class, own, flag_values)


def _check_unique_names(config_class: type, own: Iterable[Leaf]) -> None:
  names = {FILE: 'the file'}
  for leaf in own:
    if leaf.name in names:
      raise FlagsError(
        f'one flag --{leaf.name} for two things: {names[leaf.name]} and {leaf.dotted}',
        where=f'{config_class.__module__}.{config_class.__qualname__}',
        hint='give one of them another name',
      )
    names[leaf.name] = leaf.dotted


def _make_flag(leaf: Leaf) -> flags.Flag:
  note = ''
  if leaf.default is None or leaf.default is REQUIRED:  # absl says all other defaults itself
    note = '\n(must be given)' if leaf.default is REQUIRED else '\n(default: none)'
  return flags.Flag(
    parser=_Parser(leaf.kind),
    serializer=_Serializer(leaf.kind),
    name=leaf.name,
    default=None if leaf.default is REQUIRED else leaf.default,
    help_string=leaf.explanation + note,
    boolean=_unwrap(leaf.kind) == kind_of(bool),
  )


def _unwrap(kind: FlagKind) -> FlagKind:
  return kind.kind if isinstance(kind, Maybe) else kind


class _Parser(flags.ArgumentParser):
  """Values that are texts are parsed, and others are what they are: defaults, and what a test sets."""

  def __init__(self, kind: FlagKind):
    commas = ', separated by commas' if isinstance(_unwrap(kind), Several) else ''
    self.kind, self.syntactic_help = kind, kind.expected + commas

  def parse(self, argument: Any) -> Any:
    return self.kind.from_text(argument) if type(argument) is str else argument

  def flag_type(self) -> str:
    return self.kind.expected


class _Serializer(flags.ArgumentSerializer):
  """How a value is written on a command line."""

  def __init__(self, kind: FlagKind):
    self.kind = kind

  def serialize(self, value: Any) -> str:
    return self.kind.to_text(value)
