"""Sparse codes without an encoder: what a pursuit gains over the encoder of the same dictionary.

  python -m experiments.ito --run=out/sweep

Evaluates every dictionary of a run at several L0: with the latents of its encoder, with those of pursuits, with its
encoder cut to the largest contributions, and, as controls, random directions and a dictionary of activations (ITDA).
Writes `ito.json`, `ito.png` and `ito.html`. The sums of each batch are saved: the same command resumes after an
interruption. README.md has the cost and the results.
"""

from __future__ import annotations

from experiments import program
from experiments.ito import report
from experiments.ito.latents import compare_latents
from experiments.ito.measure import measure, prepare
from experiments.ito.settings import Settings


def run(settings: Settings, command: str) -> None:
  subjects, out = prepare(settings)
  found = compare_latents(settings, subjects)
  points = measure(settings, subjects, out)
  report.write(points, found, f'{subjects.model.name}, {subjects.site}', command, out)


main = program.define('ito', run)

if __name__ == '__main__':
  program.start(main, Settings)
