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

import mechjax
from experiments import program
from experiments.facts import report
from experiments.facts.measure import measure
from experiments.facts.settings import Settings
from experiments.facts.subject import prepare


def run(settings: Settings, command: str) -> None:
  results = measure(settings, prepare(settings, mechjax.load(settings.model)))
  report.write(results | {'command': command}, settings.out)


main = program.define('facts', run)

if __name__ == '__main__':
  program.start(main, Settings)
