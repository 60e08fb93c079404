"""Yardsticks: dictionaries against known variables, labelled words, cities, toy models and compiled programs.

  python -m experiments.yardsticks --dictionaries=out/a/dictionaries/topk/0/resid_post.15 --out=out/yardsticks
  python -m experiments.yardsticks --parts=toys,tracr --out=out/yardsticks_toys

Prints its tables, and writes `yardsticks.json`, `yardsticks.html` and a picture of each part, such as `ioi.png`. Every
step is saved: the same command resumes after an interruption, and another run with other --parts adds to the directory.
README.md has the definitions, the cost and the results.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.yardsticks import report
from experiments.yardsticks.measure import measure, prepare
from experiments.yardsticks.settings import Settings


def run(settings: Settings, command: str) -> None:
  results = measure(settings, prepare(settings, mechjax.load))
  report.write(results | {'command': command}, settings.out)


main = program.define('yardsticks', run)

if __name__ == '__main__':
  program.start(main, Settings)
