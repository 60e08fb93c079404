"""Checkpoints: training states on disk, written while training continues.

    kept = Checkpoints('out/run/checkpoints', last=2, best=1)
    kept.save(1200, state, objective=0.31)          returns when the arrays are on the host, before they are on disk
    state = kept.restore(shapes(trainer))           the newest checkpoint

Orbax writes each checkpoint to a temporary directory and renames it, so a killed process leaves complete checkpoints
and perhaps a temporary directory, which is ignored. The `last` newest are kept, and the `best` with the lowest
objective. Every host writes the shards that it holds, and all hosts must call every method.

Sharp edge: a checkpoint that was damaged later raises an error; an older one is never restored silently instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field

OBJECTIVE = 'objective'


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    directory: directory of the checkpoints.
    last: number of newest checkpoints to keep.
    best: number of checkpoints with the lowest objective to keep in addition.
  """

  def __init__(self, directory: str | os.PathLike[str], *, last: int = 2, best: int = 1):
    """Opens or creates the directory.

    Raises:
      SAEError: no checkpoint would be kept.
    """
    import orbax.checkpoint as ocp  # takes a second
    from orbax.checkpoint import checkpoint_managers as managers

    self.directory, self.last, self.best = Path(directory).absolute(), last, best
    check_field(self, 'last', last >= 1, 'at least 1')
    check_field(self, 'best', best >= 0, 'at least 0')
    lowest = managers.BestN(n=best, get_metric_fn=lambda m: m[OBJECTIVE], reverse=True)
    policies = [managers.LatestN(last), *([lowest] if best else [])]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(policies),
      best_fn=lambda m: m[OBJECTIVE],
      best_mode='min',
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  @property
  def steps(self) -> list[int]:
    """Steps of the available checkpoints."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, *, objective: float) -> None:
    """Starts writing a checkpoint.

    Args:
      step: number of completed updates.
      state: a tree of arrays.
      objective: number by which the best checkpoints are chosen, lowest first.
    """
    import orbax.checkpoint as ocp

    arguments = ocp.args.StandardSave(state)
    self._manager.save(step, args=arguments, metrics={OBJECTIVE: objective}, force=True)

  def restore(self, shapes: Any, step: int | None = None) -> Any:
    """Restores a state.

    Args:
      shapes: tree of jax.ShapeDtypeStruct with shardings.
      step: step of the checkpoint; None for the newest.

    Raises:
      SAEError: the checkpoint does not exist or cannot be read.
    """
    import orbax.checkpoint as ocp

    steps = self.steps
    step = steps[-1] if step is None and steps else step
    if step not in steps:
      raise SAEError(
        f'no checkpoint of step {step}', where=f'{self.directory} has checkpoints of steps {steps}'
      )
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
    except Exception as e:  # damaged files raise arbitrary errors in the libraries that read them
      raise SAEError(
        f'the checkpoint of step {step} cannot be restored: {type(e).__name__}: {e!s:.300}',
        where=f'{self.directory / str(step)}',
        cause='damaged or missing files, or dictionaries of another shape',
        hint=f'move that directory away to resume from {steps[:-1] or "the start"}',
      ) from e

  def wait(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits until everything is on disk and releases resources."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class NoCheckpoints:
  """Checkpoints of a training without a directory: nothing is saved."""

  steps: tuple[int, ...] = ()

  def save(self, step: int, state: Any, *, objective: float) -> None:
    """Does nothing."""

  def restore(self, shapes: Any, step: int | None = None) -> Any:
    """Raises an SAEError: there is nothing to restore."""
    raise SAEError(f'no checkpoint of step {step}', cause='a training without a directory')

  def wait(self) -> None:
    """Does nothing."""
