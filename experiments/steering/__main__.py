"""Steering towards a concept: how often it succeeds, and what it costs on other text.

  python -m experiments.steering --dictionary=out/steering_sae/dictionaries/topk/0

Compares methods that add a vector to the residual stream, at several strengths: the share of rollouts with a word of
the concept against the loss that the same edit adds to unrelated text. Writes `steering.json`, `steering.png` and
`steering.html`; each frontier is saved when it is measured, and the same command continues an interrupted run.
"""

from __future__ import annotations

from experiments import program
from experiments.steering import report
from experiments.steering.measure import measure, prepare
from experiments.steering.settings import Settings


def run(settings: Settings, command: str) -> None:
  materials_of, out = prepare(settings)
  found = measure(settings, materials_of, out)
  report.write(found, f'{settings.model}, {settings.site}', command, out)


main = program.define('steering', run)

if __name__ == '__main__':
  program.start(main, Settings)
