"""Studies of dictionaries: end to end, diffing, stability and matching, dark matter, and variants of training.

  python -m experiments.dictionaries --model=smollm2-135m --layer=15 --out=out/dictionaries
  python -m experiments.dictionaries --studies=dark_matter --dictionaries=out/sweep/dictionaries/topk/1

Writes `dictionaries.json`, and for each study a picture and a page. Every step is saved: the same command resumes after
an interruption, and `--studies` adds studies to a directory. README.md has the cost and the definitions.
"""

from __future__ import annotations

import shlex
import sys

from absl import app

import mechjax
from experiments.dictionaries import report
from experiments.dictionaries.measure import measure
from experiments.dictionaries.settings import Settings
from experiments.dictionaries.subject import prepare
from mechjax import errors, flags


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    settings = handle.value()
    results = measure(settings, prepare(settings, mechjax.load(settings.model)))
    results['command'] = shlex.join(['python', '-m', 'experiments.dictionaries', *sys.argv[1:]])
    report.write(results, settings.out)
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
