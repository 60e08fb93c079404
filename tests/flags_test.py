"""A dataclass becomes a command line and a file: every value is read back, and every mistake is named."""

import dataclasses
import enum
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from absl import flags as absl_flags
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.flags import FlagsError, as_json, define, differences, from_json
from mechjax.flags.leaves import leaves


class Way(enum.Enum):
  FORTH = 1
  BACK = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
  """Settings of the training.

  Attributes:
    steps: how many.
    learning_rate: of Adam, once it
      is warm: and not before.
  """

  steps: int = 1_000
  learning_rate: float = 3e-4

  def __post_init__(self):
    if self.steps < 1:
      raise ArithmeticError(f'steps={self.steps} should be positive')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
  """Fields of all configs.

  Attributes:
    seed: of everything random.

  Raises:
    Nothing: ever.
  """

  seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
  """A run.

  Attributes:
    site: where.
    widths: of the dictionaries.
    optimisation: not explained in help.
    fresh: begin anew.
    shuffled: in random order.
    kind: of dictionary.
    way: in which direction.
    out: a directory.
    note: to be kept.
    span: a name, and how much.
    ways: one after the other.
    sure: whether it is known.

  Attributes of something else:
    site: wrong.
  """

  site: str
  widths: tuple[int, ...] = (16, 32)
  optimisation: Optimisation = Optimisation()
  fresh: bool = False
  shuffled: bool = True
  kind: Literal['relu', 'topk', 2] = 'relu'
  way: Way = Way.FORTH
  out: Path = Path('out')
  note: str | None = None
  span: tuple[str, float] | None = None
  ways: tuple[Way, ...] = ()
  sure: bool | None = None


def parsed(*arguments: str, config_class: Any = Config, defaults: Any = None):
  values = absl_flags.FlagValues()
  handle = define(config_class, defaults, values)
  assert values(['program', *arguments]) == ['program']
  return handle.value()


# --- the command line -------------------------------------------------------------------------------------


def test_flags_that_are_not_given_have_the_defaults_of_the_class():
  assert parsed('--site=embed') == Config(site='embed')


def test_flags_that_are_not_given_have_the_defaults_of_an_instance():
  defaults = Config(site='embed', seed=3, optimisation=Optimisation(steps=7), way=Way.BACK)
  assert parsed(defaults=defaults) == defaults
  assert parsed('--steps=8', defaults=defaults).optimisation.steps == 8


@pytest.mark.parametrize(
  ('argument', 'changes'),
  [
    ('--widths=1,2_000', {'widths': (1, 2000)}),
    ('--widths=', {'widths': ()}),
    ('--steps=10_000', {'optimisation': Optimisation(steps=10_000)}),
    ('--learning_rate=3e-5', {'optimisation': Optimisation(learning_rate=3e-5)}),
    ('--learning_rate=1', {'optimisation': Optimisation(learning_rate=1.0)}),
    ('--fresh', {'fresh': True}),
    ('--fresh=True', {'fresh': True}),
    ('--noshuffled', {'shuffled': False}),
    ('--shuffled=false', {'shuffled': False}),
    ('--kind=topk', {'kind': 'topk'}),
    ('--kind=2', {'kind': 2}),
    ('--way=BACK', {'way': Way.BACK}),
    ('--out=a/b', {'out': Path('a/b')}),
    ('--seed=3', {'seed': 3}),
    ('--seed=none', {'seed': None}),
    ('--note=', {'note': ''}),
    ('--note=a,b=c', {'note': 'a,b=c'}),
    ('--span=a,0.5', {'span': ('a', 0.5)}),
    ('--ways=BACK,FORTH', {'ways': (Way.BACK, Way.FORTH)}),
    ('--sure', {'sure': True}),
    ('--nosure', {'sure': False}),
    ('--sure=none', {'sure': None}),
  ],
)
def test_a_flag_says_what_its_field_holds(argument, changes):
  found, wanted = parsed('--site=embed', argument), Config(site='embed', **changes)
  assert found == wanted
  assert repr(found) == repr(wanted)  # 1 == 1.0 == True


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--steps=many', 'should be an integer'),
    ('--steps=1.5', 'should be an integer'),
    ('--learning_rate=fast', 'should be a number'),
    ('--shuffled=maybe', 'should be true or false'),
    ('--kind=gated', 'one of relu, topk, 2'),
    ('--way=1', 'one of FORTH, BACK'),
    ('--seed=', 'should be none, or an integer'),
    ('--widths=1,,2', 'should be an integer'),
    ('--span=a', 'a list of 2: a string, a number'),
    ('--span=a,b', 'a list of 2: a string, a number'),
  ],
)
def test_what_a_field_cannot_hold_is_refused_with_the_flag_and_what_it_takes(argument, message):
  with pytest.raises(absl_flags.IllegalFlagValueError, match=f'{argument}.*{message}'):
    parsed(argument)


def test_a_field_that_has_no_default_must_be_given():
  with pytest.raises(FlagsError, match=r'(?s)site of Config must be given.*the command line'):
    parsed()


def test_what_a_config_says_of_its_own_values_comes_out_as_it_is():
  with pytest.raises(ArithmeticError, match='steps=0 should be positive'):
    parsed('--site=embed', '--steps=0')


def test_values_that_a_test_sets_count_as_given():
  values = absl_flags.FlagValues()
  handle = define(Config, Config(site='embed'), values)
  values(['program'])
  values.steps = 5
  assert handle.value().optimisation.steps == 5


def test_flags_cannot_be_read_before_they_are_parsed():
  with pytest.raises(absl_flags.UnparsedFlagAccessError):
    define(Config, flag_values=absl_flags.FlagValues()).value()


# --- definition -------------------------------------------------------------------------------------------


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
    inner: Optimisation = Optimisation()

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


# --- files ------------------------------------------------------------------------------------------------

TOML = """
site = 'mlp_out.3'
widths = [1_000]
seed = 'none'
note = 'none'
span = ['a', 1]
out = 'x'
way = 'BACK'

[optimisation]
steps = 20_000
"""
SAID = Config(
  site='mlp_out.3', widths=(1000,), span=('a', 1.0), out=Path('x'), way=Way.BACK,
  optimisation=Optimisation(steps=20_000),
)  # fmt: skip


def file(tmp_path, text, suffix='.toml'):
  path = tmp_path / f'base{suffix}'
  path.write_text(text)
  return f'--config={path}'


def test_flags_win_over_the_file_and_the_file_wins_over_defaults(tmp_path):
  base = file(tmp_path, TOML)
  assert parsed(base, defaults=Config(site='embed', seed=5, note='x')) == SAID
  found = parsed('--learning_rate=1', '--site=embed', base, '--widths=2', '--way=FORTH')
  wanted = Optimisation(steps=20_000, learning_rate=1.0)
  assert found == dataclasses.replace(
    SAID, optimisation=wanted, site='embed', widths=(2,), way=Way.FORTH
  )


def test_a_flag_that_says_the_default_wins_over_the_file(tmp_path):
  assert parsed(file(tmp_path, TOML), '--steps=1000').optimisation.steps == 1000


def test_what_a_run_has_written_is_a_file_that_repeats_it(tmp_path):
  config = dataclasses.replace(SAID, note='none', fresh=True, ways=(Way.BACK,))
  assert parsed(file(tmp_path, as_json(config), '.json')) == config


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('stie = "embed"', r"no field 'stie'.*perhaps.*site"),
    ('[optimisation]\nlerning_rate = 1.0', r'perhaps optimisation\.learning_rate'),
    ('learning_rate = 1.0', r"no field 'learning_rate'.*perhaps optimisation\.learning_rate"),
    ('[optimisation.steps]\nn = 1', r'optimisation\.steps=.*should be an integer'),
    ('[sight]\nn = 1', "no field 'sight'.*perhaps.*site"),
    ('zzz = 1', r'there are .*optimisation\.steps'),
    ('optimisation = 3', 'optimisation=3 should be a table'),
    ('[optimisation]\nsteps = "many"', r"optimisation\.steps='many' should be an integer"),
    ('[optimisation]\nsteps = 1.0', r'optimisation\.steps=1.0 should be an integer'),
    ('[optimisation]\nsteps = true', r'optimisation\.steps=True should be an integer'),
    ('[optimisation]\nlearning_rate = "1"', "learning_rate='1' should be a number"),
    ('fresh = 1', 'fresh=1 should be true or false'),
    ('fresh = "true"', "fresh='true' should be true or false"),
    ('kind = "2"', "kind='2' should be one of relu, topk, 2"),
    ('way = 1', 'way=1 should be one of FORTH, BACK'),
    ('widths = 3', 'widths=3 should be a list, each an integer'),
    ('widths = [3, "4"]', r"widths=\[3, '4'\] should be an integer"),
    ('site = "none"\nout = 3', 'out=3 should be a path'),
    ('note = 3', 'note=3 should be none, or a string'),
    ('a = ', 'is not TOML'),
    ('site = "a"\nsite = "b"', 'is not TOML'),
  ],
)
def test_a_mistake_in_a_file_names_the_key_and_the_file(text, message, tmp_path):
  with pytest.raises(FlagsError, match=f'(?s){message}') as error:
    parsed(file(tmp_path, text))
  assert str(tmp_path / 'base.toml') in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"site": null}', 'site=None should be a string'),
    ('{"seed": "none", "site": "a"}', "seed='none' should be none, or an integer"),
    ('{"site": "a", "site": "b"}', "the key 'site' occurs twice"),
    ('[]', 'should be a table'),
    ('[' * 100_000, 'is not JSON'),
    ('{"site": "a"', 'is not JSON'),
  ],
)
def test_json_has_a_null_and_no_repeated_keys(text, message, tmp_path):
  with pytest.raises(FlagsError, match=message) as error:
    parsed(file(tmp_path, text, '.json'))
  assert str(tmp_path / 'base.json') in str(error.value)


def test_a_file_that_is_not_there_or_of_another_format_is_an_error(tmp_path):
  with pytest.raises(FlagsError, match=r'nowhere\.toml cannot be read'):
    parsed('--config=nowhere.toml')
  with pytest.raises(FlagsError, match=r'ends with \.toml or \.json'):
    parsed(file(tmp_path, '', '.yaml'))
  (tmp_path / 'latin.toml').write_bytes(b'site = "\xe4"')
  with pytest.raises(FlagsError, match='cannot be read'):
    parsed(f'--config={tmp_path / "latin.toml"}')


def test_an_error_of_the_config_comes_out_as_it_is_from_a_file_too(tmp_path):
  with pytest.raises(ArithmeticError, match='steps=0 should be positive'):
    parsed(file(tmp_path, 'site = "a"\n[optimisation]\nsteps = 0'))


# --- round trips ------------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False)
texts = st.text(st.characters(codec='utf-8'))
configs = st.builds(
  Config,
  site=texts,
  seed=st.none() | st.integers(),
  widths=st.lists(st.integers()).map(tuple),
  optimisation=st.builds(Optimisation, steps=st.integers(1), learning_rate=numbers),
  fresh=st.booleans(),
  kind=st.sampled_from(['relu', 'topk', 2]),
  way=st.sampled_from(Way),
  out=st.sampled_from([Path('a'), Path('/a/b c'), Path('ü')]),
  note=st.none() | texts,
  span=st.none() | st.tuples(texts, numbers),
  ways=st.lists(st.sampled_from(Way)).map(tuple),
  sure=st.sampled_from([None, True, False]),
)


@settings(deadline=None)
@given(configs)
def test_json_says_a_config_and_says_it_whole(config):
  assert from_json(Config, as_json(config)) == config
  assert repr(from_json(Config, as_json(config))) == repr(config)


@settings(deadline=None)
@given(configs)
def test_a_command_line_says_a_config(config):
  safe = dataclasses.replace(config, span=None, note='a' if config.note == 'none' else config.note)
  arguments = [f'--{leaf.name}={leaf.kind.to_text(leaf.default)}' for leaf in leaves(Config, safe)]
  assert repr(parsed(*arguments)) == repr(safe)


@settings(deadline=None)
@given(configs, configs)
def test_configs_differ_in_exactly_the_fields_whose_values_differ(a, b):
  fields = {line.partition(':')[0] for line in differences(a, b)}
  flat = [
    {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name != 'optimisation'}
    | {f'optimisation.{k}': v for k, v in dataclasses.asdict(c.optimisation).items()}
    for c in (a, b)
  ]
  assert fields == {name for name in flat[0] if flat[0][name] != flat[1][name]}
  assert (not fields) == (a == b)


def test_differences_say_both_values_as_a_command_line_does():
  a = Config(site='embed', widths=(1, 2))
  b = dataclasses.replace(SAID, site='embed')
  assert differences(a, a) == []
  assert differences(a, b) == [
    'widths: 1,2, 1000',
    'optimisation.steps: 1000, 20000',
    'way: FORTH, BACK',
    'out: out, x',
    'span: none, a,1.0',
  ]
  with pytest.raises(FlagsError, match='a Config and a Optimisation'):
    differences(a, a.optimisation)


def test_json_is_a_mirror_of_the_dataclass():
  assert json.loads(as_json(SAID)) == {
    'seed': None,
    'site': 'mlp_out.3',
    'widths': [1000],
    'optimisation': {'steps': 20_000, 'learning_rate': 3e-4},
    'fresh': False,
    'shuffled': True,
    'kind': 'relu',
    'way': 'BACK',
    'out': 'x',
    'note': None,
    'span': ['a', 1.0],
    'ways': [],
    'sure': None,
  }
  rates = Optimisation(learning_rate=math.inf)
  assert from_json(Optimisation, as_json(rates)) == rates


def test_json_from_elsewhere_is_checked_and_says_where_it_is_from():
  with pytest.raises(FlagsError, match=r'(?s)perhaps steps|run/config.json'):
    from_json(Optimisation, '{"stepps": 3}', where=Path('run/config.json'))
  with pytest.raises(FlagsError, match=r'(?s)site of Config must be given.*run/config\.json'):
    from_json(Config, '{}', where='run/config.json')
  assert from_json(Optimisation, '{}') == Optimisation()


def test_defaults_of_another_class_are_an_error():
  @dataclasses.dataclass(frozen=True)
  class Other(Optimisation):
    pass

  with pytest.raises(FlagsError, match='defaults holds'):
    define(Optimisation, Other(), absl_flags.FlagValues())
  with pytest.raises(FlagsError, match='optimisation holds'):
    as_json(Config(site='a', optimisation=Other()))


# --- a program --------------------------------------------------------------------------------------------

PROGRAM = '''
"""A program."""
import dataclasses
from absl import app
from mechjax import flags

@dataclasses.dataclass(frozen=True)
class Config:
  """A run.

  Attributes:
    width: how many latents
      there are.
    fresh: begin anew.
  """
  width: int
  fresh: bool = False

if __name__ == '__main__':
  config = flags.define(Config)
  app.run(lambda argv: print(config.value()))
'''


@pytest.fixture(scope='module')
def program(tmp_path_factory):
  path = tmp_path_factory.mktemp('program') / 'program.py'
  path.write_text(PROGRAM)
  (path.parent / 'base.toml').write_text('width = 1_000\nfresh = true\n')

  def run(*arguments):
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent, timeout=120)

  return run


def test_a_program_explains_its_own_flags(program):
  found = ' '.join(program('--help').stdout.split())
  assert '--width: how many latents there are. (must be given) (an integer)' in found
  assert "--[no]fresh: begin anew. (default: 'false')" in found
  assert '--config: A file' in found


def test_a_program_takes_a_file_and_flags(program):
  assert program('--config=base.toml').stdout == 'Config(width=1000, fresh=True)\n'
  found = program('--config', 'base.toml', '--width=2_000', '--nofresh')
  assert found.stdout == 'Config(width=2000, fresh=False)\n'


def test_a_program_suggests_the_flag_that_was_meant(program):
  found = program('--widht=3')
  assert found.returncode == 1
  assert "Unknown command line flag 'widht'. Did you mean: width" in found.stderr


def test_a_program_says_what_is_wrong_with_a_value_or_missing(program):
  found = program('--width=3.5')
  assert found.returncode == 1
  assert 'flag --width=3.5: should be an integer' in found.stderr
  found = program()
  assert found.returncode == 1
  assert 'width of Config must be given' in found.stderr
