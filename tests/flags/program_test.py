"""A program whose flags are a dataclass, run as a user runs it."""

import subprocess
import sys

import pytest

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
  assert '--width of Config must be given' in found.stderr
