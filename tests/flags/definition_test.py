"""Flags made from a dataclass: their help, and classes that flags cannot express."""

import dataclasses
from typing import Any

import pytest
from absl import flags as absl_flags

from mechjax.flags import FlagsError, as_json, define
from tests.flags.config import Config, Optimisation


def test_help_is_the_docstring_and_says_defaults_and_choices():
  values = absl_flags.FlagValues()
  define(Config, flag_values=values)
  text = ' '.join(values.get_help().split())
  for wanted in (
    '--config: A file of TOML or JSON',
    "--learning_rate: of Adam, once it is warm: and not before. (default: '0.0003') (a number)",
    "--[no]shuffled: in random order. (default: 'true')",
    '--site: where. (must be given) (a string)',
    '--seed: of everything random. (default: none) (none, or an integer)',
    "--kind: of dictionary. (default: 'relu') (one of relu, topk, 2)",
    "--widths: of the dictionaries. (default: '16,32') (a list, each an integer, separated by commas)",
    "--way: in which direction. (default: 'FORTH')",
  ):
    assert wanted in text


def config_class(annotation, default, doc='Attributes:\n  x: a field.'):
  made = dataclasses.make_dataclass('Made', [('x', annotation, default)], frozen=True)
  made.__doc__ = f'Made.\n\n{doc}'
  return made


@pytest.mark.parametrize(
  'annotation',
  [dict, list[int], int | str, tuple[tuple[int, ...], ...], Any, Optimisation | None, bytes],
)
def test_a_field_that_no_flag_can_hold_is_an_error_that_says_which_can(annotation):
  with pytest.raises(FlagsError, match=r'(?s)no flag can hold.*Made\.x.*Literal'):
    define(config_class(annotation, None), flag_values=absl_flags.FlagValues())


def test_a_field_without_an_explanation_is_an_error():
  for doc in ('', 'Attributes:\n  y: another.\n    x: and more.', 'Args:\n  x: a field.'):
    with pytest.raises(FlagsError, match="field 'x' is not explained"):
      define(config_class(int, 0, doc), flag_values=absl_flags.FlagValues())


def test_two_fields_of_one_name_are_an_error_that_names_both():
  @dataclasses.dataclass(frozen=True)
  class Twice:
    """Two programs in one.

    Attributes:
      steps: how many.
    """

    steps: int = 0
    inner: Optimisation = Optimisation()  # noqa: RUF009 (it is frozen)

  @dataclasses.dataclass(frozen=True)
  class OwnFile:
    """A program that has a file already.

    Attributes:
      config: the file.
    """

    config: str = ''

  with pytest.raises(FlagsError, match=r'--steps for two fields: steps and inner\.steps'):
    define(Twice, flag_values=absl_flags.FlagValues())
  with pytest.raises(FlagsError, match='--config for two fields'):
    define(OwnFile, flag_values=absl_flags.FlagValues())


def test_a_flag_that_somebody_else_has_defined_is_an_error():
  values = absl_flags.FlagValues()
  absl_flags.DEFINE_integer('steps', 1, 'Others.', flag_values=values)
  with pytest.raises(absl_flags.DuplicateFlagError, match='steps'):
    define(Config, flag_values=values)


def test_defaults_of_another_class_are_an_error():
  @dataclasses.dataclass(frozen=True)
  class Other(Optimisation):
    pass

  with pytest.raises(FlagsError, match='defaults holds'):
    define(Optimisation, Other(), absl_flags.FlagValues())
  with pytest.raises(FlagsError, match='optimisation holds'):
    as_json(Config(site='a', optimisation=Other()))
