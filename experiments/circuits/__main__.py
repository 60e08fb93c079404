"""Attribution graphs of prompts, how complete they are by the number of features, and a test of their predictions.

  python -m experiments.circuits --model=smollm2-135m --dictionaries=neurons --top=16 --out=out/circuits
  MECHJAX_ACCEPT_GEMMA_TERMS=1 python -m experiments.circuits --model=gemma3-270m --run=out/transcoders \\
    --dictionaries=neurons,out/transcoders/dictionaries/topk/0 --out=out/circuits_gemma

Every dictionary (a trained set of transcoders, a cross-layer transcoder, or the model's neurons) is evaluated on
held-out text and makes a graph of every prompt; then features are removed one at a time. Writes `circuits.json`,
`circuits.png`, `circuits.html`, a page for each graph in `graphs`, and their JSON for Neuronpedia in `neuronpedia`.
Every step is saved: the same command resumes after an interruption. README.md has the cost and the definitions.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.circuits import report
from experiments.circuits.measure import measure
from experiments.circuits.settings import Settings
from experiments.circuits.subject import prepare


def run(settings: Settings, command: str) -> None:
  results, graphs = measure(settings, prepare(settings, mechjax.load(settings.model)))
  report.write(results | {'command': command}, graphs, settings.out)


main = program.define('circuits', run)

if __name__ == '__main__':
  program.start(main, Settings)
