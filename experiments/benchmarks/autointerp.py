"""Cost of automatic interpretation: requests that are saved, and the speed of services and of local models.

    python -m experiments.benchmarks.autointerp        about seven minutes on two cores, 2 GB

Each part states its metrics: `autointerp_providers` (a loopback service and the cache), `autointerp_local` (a local
model as simulator) and `autointerp_examples` (excerpts that are shown and scored).
"""

from __future__ import annotations

import os

from absl import app

import mechjax
from experiments.benchmarks import (
  autointerp_examples,
  autointerp_local,
  autointerp_providers,
  timing,
)

TARGETS = {
  **autointerp_providers.TARGETS,
  **autointerp_local.TARGETS,
  **autointerp_examples.TARGETS,
}


def main(_):
  model = mechjax.load('smollm2-135m')
  metrics = autointerp_providers.measure() | autointerp_local.measure(model)
  metrics |= autointerp_examples.measure(model)
  metrics['load'] = os.getloadavg()[0]
  return timing.report('autointerp', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
