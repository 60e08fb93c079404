"""Yardsticks: dictionaries against known variables, labelled words, cities, toy models and compiled programs.

  python -m experiments.yardsticks --dictionaries=out/a/dictionaries/topk/0/resid_post.15 --out=out/yardsticks
  python -m experiments.yardsticks --parts=toys,tracr --out=out/yardsticks_toys

Prints its tables, and writes `yardsticks.json`, `yardsticks.html` and a picture of each part, such as `ioi.png`. Every
step is saved: the same command resumes after an interruption, and another run with other --parts adds to the directory.
README.md has the definitions, the cost and the results.
"""

from __future__ import annotations

import shlex
import sys

from absl import app

import mechjax
from experiments.yardsticks import report
from experiments.yardsticks.measure import measure, prepare
from experiments.yardsticks.settings import Settings
from mechjax import errors, flags


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    settings = handle.value()
    results = measure(settings, prepare(settings, mechjax.load))
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')
  results['command'] = shlex.join(['python', '-m', 'experiments.yardsticks', *sys.argv[1:]])
  report.write(results, settings.out)


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
