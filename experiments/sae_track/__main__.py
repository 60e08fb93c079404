"""Features over the training of a model (SAE-Track): drift of directions, and formation of meaning.

  python -m experiments.sae_track --text=anarchism --out=out/sae_track

Trains a decoder of four layers on bytes, saves checkpoints, trains a dictionary for each checkpoint from that of the
next, and measures both on held-out text. Writes `sae_track.json`, `drift.png`, `formation.png` and `sae_track.html`.
The model and the dictionaries are saved: the same command resumes after either. README.md has the cost.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from experiments import outputs, saved
from experiments.sae_track import dictionaries, language, measure, report
from experiments.sae_track.settings import Settings
from mechjax import errors, flags
from mechjax.models import decoder


def run(settings: Settings) -> dict[str, Any]:
  """All steps; returns the plain results."""
  steps = saved.Saved(outputs.claim(settings.out, settings, errors.SAEError), error=errors.SAEError)
  rows, held_out = language.split_rows(settings, language.read_rows(settings))
  key = int(np.sum(rows, dtype=np.int64))

  def train_model() -> dict[str, np.ndarray]:
    params, losses = language.train(settings, rows)
    leaves = {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(params))}
    return {**leaves, 'losses': losses}

  found = steps.arrays('models', key, train_model)
  structure = jax.tree.structure(decoder.shapes(language.describe(settings), jnp.float32))
  models = jax.tree.unflatten(structure, [found[str(n)] for n in range(len(found) - 1)])
  read = language.make_reader(settings)
  trained = steps.arrays(
    'dictionaries', key, lambda: dictionaries.train_dictionaries(settings, models, rows, read)
  )
  drift, formation, results = measure.measure(settings, models, trained, held_out)
  report.write(results, drift, formation, settings.out)
  return results


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    run(handle.value())
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
