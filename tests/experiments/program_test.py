"""The program of an experiment: its settings from flags, its command, and mistakes as one line."""

import dataclasses

import pytest
from absl import app
from absl import flags as absl_flags

from experiments import program
from experiments.checks import check_setting
from mechjax import flags
from mechjax.errors import SAEError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
  """Settings of a toy.

  Attributes:
    n: a number.
  """

  n: int = 3

  def __post_init__(self):
    check_setting(SAEError, self, 'n', self.n >= 1, 'at least 1')


def parse(*given):
  values = absl_flags.FlagValues()
  handle = flags.define(Toy, flag_values=values)
  values(['toy', *given])
  return handle


def test_an_experiment_is_called_with_its_settings_and_with_the_command_that_repeats_it(
  monkeypatch,
):
  called = []
  main = program.define('toy', lambda *given: called.append(given))
  monkeypatch.setattr('sys.argv', ['/somewhere/toy/__main__.py', '--n=5', "--out=it's"])
  main(['toy'], parse('--n=5'))
  assert called == [(Toy(n=5), """python -m experiments.toy --n=5 '--out=it'"'"'s'""")]


def fail(settings, command):
  raise SAEError('the loss is NaN', hint='a smaller --rate')


def test_mistakes_end_a_program_with_one_message():
  with pytest.raises(SystemExit, match=r'^SAEError: n=0 should be at least 1'):
    program.define('toy', fail)(['toy'], parse('--n=0'))
  with pytest.raises(SystemExit, match=r'^SAEError: the loss is NaN(.|\n)*a smaller --rate'):
    program.define('toy', fail)(['toy'], parse())
  with pytest.raises(app.UsageError, match='unexpected arguments'):
    program.define('toy', fail)(['toy', 'more'], parse())


def test_an_interrupt_ends_a_program_with_one_line_and_the_code_of_shells(capsys):
  def wait(settings, command):
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as e:
    program.define('toy', wait)(['toy'], parse())
  assert e.value.code == 130
  assert capsys.readouterr().err == 'interrupted; the files that were written are complete\n'


def test_an_error_of_the_program_itself_is_not_hidden():
  def divide(settings, command):
    return 1 / 0

  with pytest.raises(ZeroDivisionError):
    program.define('toy', divide)(['toy'], parse())
