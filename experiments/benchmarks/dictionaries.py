"""Cost of the remaining dictionaries: their training steps, and the analyses that compare them.

    python -m experiments.benchmarks.dictionaries        about ten minutes on two cores, 4 GB

Each part states its metrics: `dictionaries_choice` (steps of feature choice), `dictionaries_crosscoder` (steps of
crosscoders), `dictionaries_end_to_end` (steps of end-to-end fine-tuning), `dictionaries_match` (matched permutations),
`dictionaries_dark_matter` (regressions of the error) and `dictionaries_edits` (greedy edits of latents).
"""

from __future__ import annotations

import os

from absl import app

import mechjax
from experiments.benchmarks import (
  dictionaries_choice,
  dictionaries_crosscoder,
  dictionaries_dark_matter,
  dictionaries_edits,
  dictionaries_end_to_end,
  dictionaries_match,
  timing,
)

# The order is that of the measurements.
TARGETS = {
  **dictionaries_end_to_end.TARGETS,
  **dictionaries_dark_matter.TARGETS,
  **dictionaries_crosscoder.TARGETS,
  **dictionaries_match.TARGETS,
  **dictionaries_choice.TARGETS,
  **dictionaries_edits.TARGETS,
}


def main(_):
  model = mechjax.load('smollm2-135m')
  metrics = dictionaries_end_to_end.end_to_end_steps(model) | dictionaries_dark_matter.measure(
    model
  )
  del model
  metrics |= dictionaries_crosscoder.crosscoder_steps() | dictionaries_match.measure_matches()
  metrics |= dictionaries_choice.measure() | dictionaries_edits.measure()
  metrics['load'] = os.getloadavg()[0]
  return timing.report('dictionaries', metrics, TARGETS)


if __name__ == '__main__':
  app.run(main)
