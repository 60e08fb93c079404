"""Cost of the measurements of facts, probes and neurons.

    python -m experiments.benchmarks.facts        about ten minutes on two cores, 4 GB

Each part states its metrics: `facts_cartesian` (all pairs of first names and surnames), `facts_local` (truncated
contexts of ten lengths), `facts_effective` (a sweep of effective models), `facts_neurons` (effects of all neurons of a
layer) and `facts_probes` (many probes in one solve).
"""

from __future__ import annotations

import os

from absl import app

import mechjax
from experiments.benchmarks import (
  facts_cartesian,
  facts_effective,
  facts_local,
  facts_neurons,
  facts_probes,
  timing,
)

TARGETS = {
  **facts_cartesian.TARGETS,
  **facts_local.TARGETS,
  **facts_effective.TARGETS,
  **facts_neurons.TARGETS,
  **facts_probes.TARGETS,
}


def main(_):
  model = mechjax.load('smollm2-135m')
  metrics = facts_cartesian.measure(model) | facts_local.measure(model)
  metrics |= facts_effective.effective_sweeps(model)
  del model
  metrics |= facts_neurons.neuron_effects() | facts_probes.probes()
  metrics['load'] = os.getloadavg()[0]
  return timing.report('facts', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
