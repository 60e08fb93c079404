"""Features over the training of a model (SAE-Track): drift of directions, and formation of meaning.

  python -m experiments.sae_track --text=anarchism --out=out/sae_track

Trains a decoder of four layers on bytes, saves checkpoints, trains a dictionary for each checkpoint from that of the
next, and measures both on held-out text. Writes `sae_track.json`, `drift.png`, `formation.png`, `groups.png` and
`sae_track.html`.
The model and each dictionary are saved when they are trained: the same command resumes after an interruption. README.md
has the cost and the definitions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import outputs, program, saved
from experiments.sae_track import dictionaries, language, measure, report
from experiments.sae_track.settings import Settings
from mechjax import errors
from mechjax.models import decoder


def run(settings: Settings, command: str) -> dict[str, Any]:
  """All steps; returns the plain results."""
  rows, held_out = language.split_rows(settings, language.read_rows(settings))
  out = outputs.claim(settings.out, settings, errors.SAEError)
  steps, key = saved.Saved(out, error=errors.SAEError), int(np.sum(rows, dtype=np.int64))

  def train_model() -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(language.train(settings, rows))
    return {str(n): leaf for n, leaf in enumerate(leaves)}

  found = steps.arrays('models', key, train_model)
  structure = jax.tree.structure(decoder.shapes(language.describe(settings), jnp.float32))
  models = jax.tree.unflatten(structure, [found[str(n)] for n in range(len(found))])
  save = functools.partial(steps.arrays, key=key)
  trained = dictionaries.train_dictionaries(settings, models, rows, save)
  drift, formation, results = measure.measure(settings, models, trained, held_out)
  results |= {
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'versions': outputs.list_versions(),
    'command': command,
  }
  report.write(results, drift, formation, settings.out)
  return results


main = program.define('sae_track', run)

if __name__ == '__main__':
  program.start(main, Settings)
