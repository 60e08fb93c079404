"""Steering towards a concept: how often it succeeds, and what it costs on other text.

  python -m experiments.steering --dictionary=out/steering_sae/dictionaries/topk/0

Compares methods that add a vector to the residual stream, at several strengths: the share of rollouts with a word of
the concept against the loss that the same edit adds to unrelated text. Writes `steering.json`, `steering.png` and
`steering.html`; each frontier is saved when it is measured, and the same command continues an interrupted run.
"""

from __future__ import annotations

import shlex
import sys

from absl import app

from experiments.steering import report
from experiments.steering.measure import measure, prepare
from experiments.steering.settings import Settings
from mechjax import errors, flags


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  settings = handle.value()
  command = shlex.join(['python', '-m', 'experiments.steering', *sys.argv[1:]])
  try:
    materials_of, out = prepare(settings)
    found = measure(settings, materials_of, out)
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')
  report.write(found, f'{settings.model}, {settings.site}', command, out)


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
