"""Trains sparse autoencoders on the activations of a model: many at once, resumable, on a laptop or a pod.

  python -m mechjax.train_sae --run=out/sae --site=resid_post.15 --jumprelu=0.001,0.003 --topk=32 --widths=1536
    --steps=1000 --batch=2048

`--help` explains every flag; `--config=file.toml` or `.json` takes them from a file. The same command resumes a run
that was stopped, by Ctrl-C, SIGTERM or without notice, and gives the same dictionaries. Several hosts run it with
--coordinator, --processes and --process.

Crosscoders of several sites, or of a site of two models, and end-to-end fine-tuning of a finished run:

  ... --crosscoder --site=resid_post.{9,12,15,18} --batch_topk=32 --format=mechjax
  ... --crosscoder --site=resid_post.15 --other_model=path/to/tuned --batch_topk=32 --format=mechjax
  ... --run=out/tuned --begin_with=out/sae --kl=1 --later=resid_post.{16..29} --mse=0.01

Cost on two CPU cores, SmolLM2-135M to layer 15: 900 tokens a second to compute activations, and for each dictionary
10 x 576 x width operations per token to train. experiments/train_sae/README.md has results.
"""

from __future__ import annotations

import sys

from absl import app, logging
from absl import flags as absl_flags

from mechjax import errors, flags
from mechjax.sae.training.journal import show
from mechjax.train_sae.run import run
from mechjax.train_sae.settings import TrainSettings


def main(argv: list[str], handle: flags.Handle[TrainSettings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  if not absl_flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax logs forty lines per checkpoint
  try:
    result = run(handle.value())
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')
  if not result.finished:
    show(f'stopped after step {int(result.state.step):,}; the same command resumes')


if __name__ == '__main__':
  settings = flags.define(TrainSettings)
  app.run(lambda argv: main(argv, settings))
