"""The training loop: batches in, metrics out, checkpoints at intervals, and every way in which a run can end.

    result = train(trainer, feed, centres, checkpoints, LoopSettings(log_every=50, save_every=500), report, dump)

The loop starts from the newest checkpoint, or from a new state. The number of completed updates is also the position in
the data, so a resumed run equals an uninterrupted one: the same parameters, bit for bit, on the same mesh.

A run ends

    when all steps are completed    the last state is saved
    when it receives a signal       SIGTERM or Ctrl-C: the state is saved, `TrainingResult.finished` is False
    when a number is not finite     the batch and the state before it are written to `dump`, and the error contains the
                                    step; checkpoints are not touched
    when it is killed               at any moment; it resumes from the newest complete checkpoint

The host runs two steps ahead of the devices and reads the metrics of earlier steps only, so the devices never wait.

Sharp edges: several hosts agree on whether to stop only when metrics are reported, since all must stop at the same
step.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.checks import check_field, check_whole
from mechjax.sae.store import Prefetch
from mechjax.sae.training.checkpoints import Checkpoints, NoCheckpoints
from mechjax.sae.training.feeding import PositionedBatch
from mechjax.sae.training.state import Metrics, State
from mechjax.sae.training.step import Trainer
from mechjax.sae.training.stopping import catch_stop_signals

AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
  """Intervals of the loop.

  Attributes:
    log_every: steps between two reports.
    save_every: steps between two checkpoints.
  """

  log_every: int = 50
  save_every: int = 1_000

  def __post_init__(self) -> None:
    check_whole(self, 'log_every', 'save_every')
    for name in ('log_every', 'save_every'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')


@dataclasses.dataclass(frozen=True)
class TrainingReport:
  """Report of the loop, every `log_every` steps.

  Attributes:
    step: number of completed updates.
    metrics: metrics of the last update, by ensemble and by name, with one number for each member.
    rate: learning rate of the last update.
    steps_per_second: mean since the previous report.
    wait: share of that time spent waiting for batches.
  """

  step: int
  metrics: dict[str, dict[str, np.ndarray]]
  rate: float
  steps_per_second: float
  wait: float


@dataclasses.dataclass(frozen=True)
class TrainingResult:
  """Result of a run.

  Attributes:
    state: the last state.
    finished: whether all steps were completed.
  """

  state: State
  finished: bool


def train(
  trainer: Trainer,
  feed: Callable[[int], Prefetch[PositionedBatch]],
  centres: Mapping[str, Any],
  checkpoints: Checkpoints | NoCheckpoints,
  loop: LoopSettings,
  report: Callable[[TrainingReport], None],
  dump: Path | None,
  begin: Callable[[], State] | None = None,
) -> TrainingResult:
  """Trains to the last step, from the newest checkpoint of an earlier call.

  Args:
    trainer: computes the steps.
    feed: function that returns batches from a position.
    centres: initial b_dec, by site.
    checkpoints: checkpoints of the run.
    loop: intervals of reports and checkpoints.
    report: function that is called with each report.
    dump: directory for the batch and the state that lead to a non-finite number; None to write none.
    begin: function that returns the first state, such as that of a fine-tuning; None for new dictionaries.

  Raises:
    SAEError: a number is not finite, or a checkpoint cannot be read.
  """
  if checkpoints.steps:
    state = checkpoints.restore(shapes(trainer))
  else:
    state = begin() if begin else trainer.init(centres)
  done, steps = int(state.step), trainer.optimisation.steps
  saved = done if checkpoints.steps else -1
  alone = jax.process_count() == 1
  pending, stop = _Pending(dump), False
  with catch_stop_signals() as stop_requested, feed(done) as batches:
    clock = _Clock(done, batches)
    while done < steps and not stop:
      item = batches.take(give_up=lambda: alone and stop_requested())
      if item is not None:
        done, batch = item
        state, metrics = trainer.step(state, batch)
        pending.add(_Step(done, metrics, batch))
      reporting = item is not None and (done % loop.log_every == 0 or done == steps)
      stop = _agree_to_stop(stop_requested(), reporting)
      saving = stop or (item is not None and (done % loop.save_every == 0 or done == steps))
      last = pending.settle(0 if reporting or saving else AHEAD, state)
      if reporting and last:
        report(clock.report(last))
      if saving and last and done != saved:
        checkpoints.save(done, state, objective=objective(trainer, last))
        saved = done
  checkpoints.wait()
  return TrainingResult(state, done == steps)


def shapes(trainer: Trainer) -> Any:
  """Shapes and shardings of a state, into which a checkpoint is restored."""
  state = jax.eval_shape(trainer.init)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, trainer.shardings
  )


@dataclasses.dataclass(frozen=True)
class _Step:
  """A step with metrics that the host has not read yet; the state after it has number `done`."""

  done: int
  metrics: Metrics
  batch: dict[str, jax.Array]


class _Pending:
  """Steps by which the host is ahead of the devices."""

  def __init__(self, dump: Path | None):
    self._dump = dump
    self._steps: collections.deque[_Step] = collections.deque()
    self._last: _Step | None = None

  def add(self, step: _Step) -> None:
    self._steps.append(step)

  def settle(self, left: int, state: State) -> _Step | None:
    """Reads the metrics of all steps but the newest `left`; returns the last step read so far."""
    while len(self._steps) > left:
      self._last = self._steps.popleft()
      if not bool(self._last.metrics.ok):
        raise _non_finite_error(self._last, state, self._dump)
    return self._last


def objective(trainer: Trainer, step: _Step) -> float:
  """Mean over members of the loss with the final sparsity coefficient, after its warm-up."""
  metrics = jax.device_get(step.metrics.ensembles)
  losses = []
  for name, own in metrics.items():
    throughout = trainer.ensembles[name].sae.RAMPED_THROUGHOUT
    factor = float(trainer.optimisation.sparsity(max(step.done - 1, 1), throughout))
    losses.append(own['loss'] + own['sparsity'] * (1 / factor - 1))
  return float(np.mean(np.concatenate(losses)))


def _non_finite_error(step: _Step, state: State, dump: Path | None) -> SAEError:
  """Error for the first step with non-finite numbers; writes its batch and the state before it."""
  number = step.done - 1
  metrics = jax.device_get(step.metrics.ensembles)
  bad = [
    f'{ensemble}.{name} {x.tolist()}'
    for ensemble, own in metrics.items()
    for name, x in own.items()
    if not np.isfinite(x).all()
  ]
  where = None if dump is None else _dump(dump, step, state, metrics)
  kept = (
    'resume from the last checkpoint, which was not touched, with' if dump else 'start again with'
  )
  return SAEError(
    f'step {number} gave numbers that are not finite: {", ".join(bad)}',
    where=f'batch number {number}'
    + (f'; it and the state before it are in {where}' if where else ''),
    cause='the learning rate is too high, or activations differ much from those on which the scale was measured',
    hint=f'{kept} a lower learning rate',
  )


def _dump(
  dump: Path, step: _Step, state: State, metrics: Mapping[str, Mapping[str, np.ndarray]]
) -> Path:
  """Writes the batch of a step and the state before it; returns the directory."""
  number = step.done - 1
  where = dump / f'step_{number}_of_process_{jax.process_index()}'
  where.mkdir(parents=True, exist_ok=True)
  by_ensemble = {
    ensemble: {name: str(x) for name, x in own.items()} for ensemble, own in metrics.items()
  }
  files.write_json(where / 'metrics.json', by_ensemble)
  arrays: dict[str, Any] = {}
  for path, x in jax.tree_util.tree_leaves_with_path({'batch': step.batch, 'state': state}):
    arrays |= _local_arrays(jax.tree_util.keystr(path), x)
  with files.whole(where / 'arrays.npz') as file:
    np.savez(file, **arrays)
  return where


def _local_arrays(name: str, x: jax.Array) -> dict[str, np.ndarray]:
  if x.is_fully_addressable:
    return {name: np.asarray(x)}
  return {f'{name}{s.index}': np.asarray(s.data) for s in x.addressable_shards}


def _agree_to_stop(requested: bool, reporting: bool) -> bool:
  """Whether to stop: at once in a single process; several processes agree when they report."""
  if jax.process_count() == 1:
    return requested
  if not reporting:
    return False
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.asarray(requested))))


class _Clock:
  """Measures steps per second and the share of waiting since the previous report."""

  def __init__(self, done: int, batches: Prefetch[PositionedBatch]):
    self._batches = batches
    self._last = done, time.perf_counter(), batches.waited

  def report(self, step: _Step) -> TrainingReport:
    done, metrics, rate = (
      step.done,
      jax.device_get(step.metrics.ensembles),
      float(step.metrics.rate),
    )
    before, since, waited = self._last
    now = time.perf_counter()
    self._last = done, now, self._batches.waited
    seconds = now - since
    return TrainingReport(
      done, metrics, rate, (done - before) / seconds, (self._batches.waited - waited) / seconds
    )
