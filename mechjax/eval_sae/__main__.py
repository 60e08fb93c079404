"""Evaluates dictionaries: loss of the spliced model, reconstruction errors, and features.

  python -m mechjax.eval_sae --run=out/sae --dashboard=topk/0

Writes `evaluation.json`, the table and figure of loss against sparsity as `pareto.png` and `evaluation.html`, and, for
each dictionary that --dashboard names, a page of its features. Published dictionaries are evaluated with
--dictionaries, --model and --site.

Cost on two CPU cores, SmolLM2-135M, 32,768 tokens: six passes that all dictionaries share and one pass per dictionary,
a minute each.
"""

from __future__ import annotations

import sys

from absl import app

from mechjax import errors, flags
from mechjax.eval_sae import report
from mechjax.eval_sae.measure import measure
from mechjax.eval_sae.settings import EvalSettings


def main(argv: list[str], handle: flags.Handle[EvalSettings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    report.write(measure(handle.value()))
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')


if __name__ == '__main__':
  settings = flags.define(EvalSettings)
  app.run(lambda argv: main(argv, settings))
