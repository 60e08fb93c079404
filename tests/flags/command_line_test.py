"""Flags of a dataclass: every value is read back, and every mistake is named."""

from pathlib import Path

import pytest
from absl import flags as absl_flags

from mechjax.flags import FlagsError, define
from tests.flags.config import Config, Optimisation, Way, parsed


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
  with pytest.raises(FlagsError, match=r'(?s)--site of Config must be given.*the command line'):
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
