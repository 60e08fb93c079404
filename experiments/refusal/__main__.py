"""A behaviour in one direction: found, removed, added, and compared with random directions.

  python -m experiments.refusal --study=language --model=smollm2-135m --out=out/language
  python -m experiments.refusal --study=refusal --model=/path/to/model.gguf --out=out/refusal

Finds the direction that distinguishes prompts with the behaviour from prompts without, chooses it by scores on other
prompts, and measures on a third set how often completions show the behaviour when the direction is removed, subtracted
or added, what that costs, and where the direction is inside the model. Writes `refusal.json`, `refusal.png` and
`refusal.html`. Every step is saved: the same command resumes after an interruption, and where no candidate is within
the limits, the same command with other limits (--kl, --induce) uses the saved scores. Nothing of the weights is
written. README.md has the cost and the results.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.refusal import report
from experiments.refusal.measure import measure
from experiments.refusal.settings import Settings
from experiments.refusal.subject import prepare


def run(settings: Settings, command: str) -> None:
  results = measure(settings, prepare(settings, mechjax.load(settings.model)))
  report.write(results | {'command': command}, settings.out)


main = program.define('refusal', run)

if __name__ == '__main__':
  program.start(main, Settings)
