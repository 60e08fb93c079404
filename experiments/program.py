"""The program of an experiment: its settings as flags, mistakes as one line, and the command for its results.

An experiment is one function of its settings and of the command that started it, which its files state:

    def run(settings: Settings, command: str) -> None:
      report.write(measure(settings) | {'command': command}, settings.out)

    main = program.define('ito', run)

    if __name__ == '__main__':
      program.start(main, Settings)

`main` takes flags as `mechjax.flags` parses them, so that a test runs the whole program with flags of its own.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import app

from mechjax import errors, flags

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
Main = Callable[[list[str], flags.Handle[Any]], None]


def define(name: str, run: Callable[[Any, str], Any]) -> Main:
  """The program of an experiment.

  Args:
    name: name of its package in `experiments`.
    run: called with the settings and with the command that repeats this run.

  Returns:
    A function of the arguments that are left after the flags, and of the flags. A MechjaxError ends the program with
    its message, and Ctrl-C with one line.
  """

  def main(argv: list[str], handle: flags.Handle[Any]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments {argv[1:]}')
    command = shlex.join(['python', '-m', f'experiments.{name}', *sys.argv[1:]])
    try:
      run(handle.value(), command)
    except errors.MechjaxError as e:
      sys.exit(f'{type(e).__name__}: {e}')
    except KeyboardInterrupt:
      print('interrupted; the files that were written are complete', file=sys.stderr)
      sys.exit(INTERRUPTED)

  return main


def start(main: Main, settings: type) -> None:
  """Runs a program with the flags of the command line.

  Args:
    main: the program.
    settings: dataclass of its settings.
  """
  handle: flags.Handle[Any] = flags.define(settings)
  app.run(lambda argv: main(argv, handle))
