"""Studies of dictionaries: end to end, diffing, stability and matching, dark matter, and variants of training.

  python -m experiments.dictionaries --model=smollm2-135m --layer=15 --out=out/dictionaries
  python -m experiments.dictionaries --studies=dark_matter --dictionaries=out/sweep/dictionaries/topk/1

Writes `dictionaries.json`, and for each study a picture and a page. Every step is saved: the same command resumes after
an interruption, and `--studies` adds studies to a directory. README.md has the cost and the definitions.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.dictionaries import report
from experiments.dictionaries.measure import measure
from experiments.dictionaries.settings import Settings
from experiments.dictionaries.subject import prepare


def run(settings: Settings, command: str) -> None:
  results = measure(settings, prepare(settings, mechjax.load(settings.model)))
  report.write(results | {'command': command}, settings.out)


main = program.define('dictionaries', run)

if __name__ == '__main__':
  program.start(main, Settings)
