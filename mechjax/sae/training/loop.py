"""The loop around the step: batches in, figures out, checkpoints at times, and every way in which a run can end.

    outcome = train(trainer, feed, centres, checkpoints, Loop(log_every=50, save_every=500), report, dump)

It begins with the newest checkpoint, or with a new state. The number of updates made is also the position in the data,
so what continues is what would have been: the same parameters, bit for bit, on the same mesh.

A run ends

    when all steps are made         the last state is saved
    when it is asked to stop        SIGTERM or Ctrl-C: the state is saved, `TrainingResult.finished` is False
    when a number is not finite     the batch and the state before it are written to `dump`, and an error says which
                                    step it was; checkpoints stay as they are
    when it is killed               at any moment; the newest whole checkpoint is where it goes on

The host runs two steps ahead of the devices and looks at the figures of the step before those, so nothing waits for it.

Sharp edges: on several hosts whether to stop is agreed on when figures are reported, since all must stop at one step.
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
from mechjax.sae.checks import check_field
from mechjax.sae.store import Prefetch
from mechjax.sae.training.checkpoints import Checkpoints
from mechjax.sae.training.feeding import PositionedBatch
from mechjax.sae.training.step import Metrics, State, Trainer
from mechjax.sae.training.stopping import catch_stop_signals

AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
  """When the loop does what.

  Attributes:
    log_every: steps between two reports.
    save_every: steps between two checkpoints.
  """

  log_every: int = 50
  save_every: int = 1_000

  def __post_init__(self) -> None:
    for name in ('log_every', 'save_every'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')


@dataclasses.dataclass(frozen=True)
class TrainingReport:
  """What is told every so many steps.

  Attributes:
    step: how many updates were made.
    metrics: of the last of them: by ensemble and by name, one number for each member.
    rate: its learning rate.
    steps_per_second: since the last report.
    wait: share of that time in which the step waited for its batch.
  """

  step: int
  metrics: dict[str, dict[str, np.ndarray]]
  rate: float
  steps_per_second: float
  wait: float


@dataclasses.dataclass(frozen=True)
class TrainingResult:
  """How a run ended.

  Attributes:
    state: the last.
    finished: whether all steps were made.
  """

  state: State
  finished: bool


def train(
  trainer: Trainer,
  feed: Callable[[int], Prefetch[PositionedBatch]],
  centres: Mapping[str, Any],
  checkpoints: Checkpoints,
  loop: LoopSettings,
  report: Callable[[TrainingReport], None],
  dump: Path,
) -> TrainingResult:
  """Trains to the end, from wherever an earlier call got to.

  Args:
    trainer: makes the steps.
    feed: batches from a position on.
    centres: what b_dec starts from, by site.
    checkpoints: where states are kept.
    loop: when what is done.
    report: is told.
    dump: directory for what a number that is not finite came of.

  Raises:
    SAEError: a number was not finite; a checkpoint that cannot be read.
  """
  state = checkpoints.restore(shapes(trainer)) if checkpoints.steps else trainer.init(centres)
  done, steps = int(state.step), trainer.optimisation.steps
  alone = jax.process_count() == 1
  pending, stop = _Pending(dump), False
  with catch_stop_signals() as asked, feed(done) as batches:
    clock = _Clock(done, batches)
    while done < steps and not stop:
      item = batches.take(give_up=lambda: alone and asked())
      if item is not None:
        done, batch = item
        state, metrics = trainer.step(state, batch)
        pending.add(_Step(done, metrics, batch))
      reporting = item is not None and (done % loop.log_every == 0 or done == steps)
      stop = _agree_to_stop(asked(), reporting)
      saving = stop or (item is not None and (done % loop.save_every == 0 or done == steps))
      last = pending.settle(0 if reporting or saving else AHEAD, state)
      if reporting and last:
        report(clock.report(last))
      if saving and last:
        checkpoints.save(done, state, objective=objective(trainer, last))
  checkpoints.wait()
  return TrainingResult(state, done == steps)


def shapes(trainer: Trainer) -> Any:
  """Of a state, with shardings: what a checkpoint is restored into."""
  state = jax.eval_shape(trainer.init)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, trainer.shardings
  )


@dataclasses.dataclass(frozen=True)
class _Step:
  """A step whose figures nobody has looked at yet; the state after it was number `done`."""

  done: int
  metrics: Metrics
  batch: dict[str, jax.Array]


class _Pending:
  """The steps that the host is ahead of the devices."""

  def __init__(self, dump: Path):
    self._dump = dump
    self._steps: collections.deque[_Step] = collections.deque()
    self._last: _Step | None = None

  def add(self, step: _Step) -> None:
    self._steps.append(step)

  def settle(self, left: int, state: State) -> _Step | None:
    """Looks at all steps but the newest `left`; the last that was ever looked at."""
    while len(self._steps) > left:
      self._last = self._steps.popleft()
      if not bool(self._last.metrics.ok):
        raise _non_finite_error(self._last, state, self._dump)
    return self._last


def objective(trainer: Trainer, step: _Step) -> float:
  """Mean over members of the loss as it will be when the sparsity coefficient has risen."""
  factor = float(trainer.optimisation.sparsity(max(step.done - 1, 1)))
  metrics = jax.device_get(step.metrics.ensembles)
  losses = [own['loss'] + own['sparsity'] * (1 / factor - 1) for own in metrics.values()]
  return float(np.mean(np.concatenate(losses)))


def _non_finite_error(step: _Step, state: State, dump: Path) -> SAEError:
  """The error for the first step whose numbers are not; writes what it came of."""
  number = step.done - 1
  metrics = jax.device_get(step.metrics.ensembles)
  where = dump / f'step_{number}_of_process_{jax.process_index()}'
  where.mkdir(parents=True, exist_ok=True)
  record = {
    ensemble: {name: str(x) for name, x in own.items()} for ensemble, own in metrics.items()
  }
  files.write_json(where / 'metrics.json', record)
  arrays: dict[str, Any] = {}
  for path, x in jax.tree_util.tree_leaves_with_path({'batch': step.batch, 'state': state}):
    arrays |= _local_arrays(jax.tree_util.keystr(path), x)
  with files.whole(where / 'arrays.npz') as file:
    np.savez(file, **arrays)
  bad = [
    f'{ensemble}.{name} {x.tolist()}'
    for ensemble, own in metrics.items()
    for name, x in own.items()
    if not np.isfinite(x).all()
  ]
  return SAEError(
    f'step {number} gave numbers that are not finite: {", ".join(bad)}',
    where=f'batch number {number}; it and the state before it are in {where}',
    cause='a learning rate that is too high, or activations far from those that the scale was measured on',
    hint='a lower learning rate, from the last checkpoint, which was not touched',
  )


def _local_arrays(name: str, x: jax.Array) -> dict[str, np.ndarray]:
  if x.is_fully_addressable:
    return {name: np.asarray(x)}
  return {f'{name}{s.index}': np.asarray(s.data) for s in x.addressable_shards}


def _agree_to_stop(asked: bool, reporting: bool) -> bool:
  """Whether to stop: what a lone process is asked, or what several agree on when they report."""
  if jax.process_count() == 1:
    return asked
  if not reporting:
    return False
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))


class _Clock:
  """Steps per second, and the share of waiting, since the last report."""

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
