"""Facts that a model knows: which ones, where they are looked up, and where they are read.

  python -m experiments.facts --model=gemma3-270m --out=out/facts_gemma
  python -m experiments.facts --model=smollm2-135m --parts=relations,local --out=out/facts_smollm2

Measures the share of right answers of several relations; the heads that write the sport of an athlete, and the layers
at which their weights read it from the name; the part of early MLPs in it, with controls; and how far the stream at a
token depends on the tokens before it. Writes `facts.json`, `facts.png` and `facts.html`. Every step is saved: the same
command resumes after an interruption, and another run with other --parts adds to the directory. README.md has the
definitions, the cost and the results.
"""

from __future__ import annotations

import shlex
import sys

from absl import app

import mechjax
from experiments.facts import report
from experiments.facts.measure import measure
from experiments.facts.settings import Settings
from experiments.facts.subject import prepare
from mechjax import errors, flags


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    settings = handle.value()
    results = measure(settings, prepare(settings, mechjax.load(settings.model)))
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')
  results['command'] = shlex.join(['python', '-m', 'experiments.facts', *sys.argv[1:]])
  report.write(results, settings.out)


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
