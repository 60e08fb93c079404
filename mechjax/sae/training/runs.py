"""A training on a source of activations, from scales to the last state: shared by all ways to start one.

    scales = measure_scales(home / SCALES, source, max_norm_ratio=10)
    result = run_loop(trainer, source, scales, Schedule(batch=4096), checkpoints, journal.write, home / DUMP)

`mechjax.train_sae.run` gives a source that a model and texts fill, and a journal on the screen; `mechjax.sae.train`
gives any source, also arrays, and may have no directory. The numbers are the same: position, seeds and scales decide
them, and nothing else.

Sharp edge: without a directory nothing is saved, and a training that stops is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mechjax.sae import store
from mechjax.sae.store import ActivationSource, Scale
from mechjax.sae.training.checkpoints import Checkpoints, NoCheckpoints
from mechjax.sae.training.feeding import feed
from mechjax.sae.training.hosts import first_process
from mechjax.sae.training.loop import LoopSettings, TrainingReport, TrainingResult, train
from mechjax.sae.training.scale_files import read_scales, write_scales
from mechjax.sae.training.step import Trainer

SCALES, CHECKPOINTS, DUMP, DICTIONARIES = 'scales.npz', 'checkpoints', 'dump', 'dictionaries'
"""Names in the directory of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Order of the data, and intervals of reports and checkpoints.

  Attributes:
    batch: tokens of a step, over all hosts.
    seed: seed of the order within buckets.
    streams: number of streams of a batch.
    loop: intervals.
  """

  batch: int
  seed: int = 0
  streams: int = 1
  loop: LoopSettings = dataclasses.field(default_factory=LoopSettings)


def measure_scales(
  path: Path | None, source: ActivationSource, max_norm_ratio: float
) -> dict[str, Scale]:
  """Normalisation constants, measured once on the first bucket; the same for all hosts.

  Args:
    path: file that keeps them; None to measure them only.
    source: source of buckets.
    max_norm_ratio: maximum length of an activation, in median lengths; 0 for no limit.

  Raises:
    SAEError: as `store.measure`.
  """
  if path is None:
    return store.measure(source.bucket(0), max_norm_ratio)
  with first_process():
    if not path.exists():
      write_scales(path, store.measure(source.bucket(0), max_norm_ratio))
  return read_scales(path, source.widths)


def run_loop(
  trainer: Trainer,
  source: ActivationSource,
  scales: Mapping[str, Scale],
  schedule: Schedule,
  checkpoints: Checkpoints | NoCheckpoints,
  report: Callable[[TrainingReport], None],
  dump: Path | None,
) -> TrainingResult:
  """Trains to the last step, from the newest checkpoint.

  Args:
    trainer: the trainer with the ensembles.
    source: source of buckets.
    scales: normalisation constants of each site.
    schedule: order of the data, and intervals.
    checkpoints: checkpoints of the run.
    report: function that is called with each report.
    dump: directory for the batch and the state that lead to a non-finite number; None to write none.

  Raises:
    SAEError: a number is not finite, a checkpoint cannot be read, or sizes do not divide each other.
  """

  def feed_from(position: int) -> Any:
    return feed(
      source,
      scales,
      trainer.batch_sharding,
      batch=schedule.batch,
      streams=schedule.streams,
      seed=schedule.seed,
      position=position,
    )

  centres = {site: scale.mean for site, scale in scales.items()}
  return train(trainer, feed_from, centres, checkpoints, schedule.loop, report, dump)
