"""A small training for the tests of the loop: synthetic activations, dictionaries with every kind of state."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.sae import AuxK, BatchTopK, JumpReLU, Resampling, TopK
from mechjax.sae.store import Scale
from mechjax.sae.training import (
  Checkpoints,
  Ensemble,
  LoopSettings,
  Optimisation,
  Trainer,
  feed,
  train,
)

D, M, B, STEPS = 8, 24, 16, 60
SCALES = {'x': Scale(1.0, np.linspace(-0.1, 0.1, D, dtype=np.float32))}


@dataclasses.dataclass(frozen=True)
class MadeUp:
  """Buckets of sums of few of sixteen directions; a pure function of their number."""

  bucket_rows: int = 4 * B
  per_epoch: int = 7
  spoilt: int | None = None

  @property
  def widths(self):
    return {'x': D}

  def bucket(self, number):
    rng = np.random.default_rng((5, number % self.per_epoch))
    directions = np.random.default_rng(1).normal(size=(16, D)) / np.sqrt(D)
    active = rng.random((self.bucket_rows, 16)) * (rng.random((self.bucket_rows, 16)) < 0.15)
    x = (active @ directions).astype(np.float32)
    if number == self.spoilt:
      x[:, 3] = np.nan
    return {'x': x}


@functools.cache
def trainer(mesh=None, **optimisation):
  """Three ensembles: thresholds, dead latents with an auxiliary loss, dead latents that are resampled."""
  shared: dict[str, Any] = {'d_in': D, 'width': M}
  ensembles = {
    'jump': Ensemble(
      sae=JumpReLU(**shared, sparsity=1e-2, bandwidth=0.1),
      reads='x',
      seeds=(0, 1),
      hparams={'sparsity': (1e-2, 3e-2)},
    ),
    'topk': Ensemble(sae=TopK(**shared, k=3, aux_loss=AuxK(k=2, after_tokens=2 * B)), reads='x'),
    'batch': Ensemble(
      sae=BatchTopK(**shared, k=2),
      reads='x',
      resampling=Resampling(after_tokens=3 * B, rewarm_steps=5),
      resample_every=8,
    ),
  }
  settings = {'warm_up_steps': 5, 'sparsity_warm_up_steps': 20, 'learning_rate': 1e-2}
  return Trainer(ensembles, Optimisation(**{'steps': STEPS, **settings, **optimisation}), mesh)


def trained(home, report=lambda r: None, source=MadeUp(), save_every=7, **optimisation):
  """Result of a run in this directory."""
  one = trainer(**optimisation)
  feed = functools.partial(feed_of, one, source)
  with Checkpoints(Path(home) / 'checkpoints', last=2, best=1) as kept:
    loop = LoopSettings(log_every=5, save_every=save_every)
    centres = {'x': SCALES['x'].mean}
    return train(one, feed, centres, kept, loop, report, Path(home) / 'dump')


def feed_of(one, source, position):
  kept = {'batch': B, 'streams': 1, 'seed': 3}
  return feed(source, SCALES, one.batch_sharding, **kept, position=position)
