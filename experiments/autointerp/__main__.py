"""Automatic interpretation of a dictionary: explanations, scores, and the controls that give the scores a meaning.

  python -m experiments.autointerp --dictionary=out/sweep/dictionaries/topk/1 --out=out/autointerp
  python -m experiments.autointerp --dictionary=out/sweep/dictionaries/topk/1 --out=out/service \
    --endpoint=https://api.example.org/v1 --endpoint_model=m --key_variable=API_KEY \
    --endpoint_parts=explanations --budget_tokens=200_000

Prints tables, and writes `autointerp.json`, `scores.csv`, `explanations.json`, `dashboard.html`, `autointerp.html` and
`autointerp.png`. Every reply is kept in the output directory: the same command resumes after an interruption and asks
nothing twice. README.md has the definitions, the cost and the results.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.autointerp import report
from experiments.autointerp.measure import measure
from experiments.autointerp.settings import Settings
from experiments.autointerp.subject import prepare


def run(settings: Settings, command: str) -> None:
  report.write(measure(settings, prepare(settings, mechjax.load)), settings, command)


main = program.define('autointerp', run)

if __name__ == '__main__':
  program.start(main, Settings)
