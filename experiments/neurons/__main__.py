"""Neurons of the last layer that set confidence, and neurons that follow the frequency of tokens.

  python -m experiments.neurons --model=smollm2-135m --text=anarchism --tokens=2000 --sequences=200 --out=out/neurons
  MECHJAX_ACCEPT_GEMMA_TERMS=1 python -m experiments.neurons --model=gemma3-270m --out=out/neurons_gemma

Measures the output weights of all neurons of the last layer, the effect of ablating each one on the loss, and how much
of it passes through the final norm or through the frequency of tokens; then repeats sequences, clips the neurons with
the largest norm-mediated effects, and switches induction heads off. Writes `neurons.json`, `neurons.png` and
`neurons.html`. Every step is saved: the same command resumes after an interruption. README.md has the cost and the
results.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.neurons import report
from experiments.neurons.measure import measure
from experiments.neurons.settings import Settings
from experiments.neurons.subject import prepare


def run(settings: Settings, command: str) -> None:
  results = measure(settings, prepare(settings, mechjax.load(settings.model)))
  report.write(results | {'command': command}, settings.out)


main = program.define('neurons', run)

if __name__ == '__main__':
  program.start(main, Settings)
