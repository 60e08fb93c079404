"""States of a training on disk, written while it goes on.

    kept = Checkpoints('out/run/checkpoints', last=2, best=1)
    kept.save(1200, state, objective=0.31)          returns when the numbers are on the host, not on the disk
    state = kept.restore(trainer.shapes())          the newest one

Orbax writes each beside its place and renames it, so a process that is killed leaves whole checkpoints and perhaps a
directory that nobody takes for one. Kept are the `last` newest and the `best` with the lowest objective. Every host
writes the shards it holds, and all of them call every method.

Sharp edge: a checkpoint that has been damaged since is an error and not a reason to take an older one silently.
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
    directory: where they are.
    last: how many of the newest are kept.
    best: how many of those with the lowest objective are kept besides.
  """

  def __init__(self, directory: str | os.PathLike[str], *, last: int = 2, best: int = 1):
    """Opens or makes the directory.

    Raises:
      SAEError: nothing would be kept.
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
    """The steps that there are checkpoints of."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any, *, objective: float) -> None:
    """Starts to write a checkpoint.

    Args:
      step: how many updates were made.
      state: a tree of arrays.
      objective: what the best have the lowest of.
    """
    import orbax.checkpoint as ocp

    arguments = ocp.args.StandardSave(state)
    self._manager.save(step, args=arguments, metrics={OBJECTIVE: objective}, force=True)

  def restore(self, shapes: Any, step: int | None = None) -> Any:
    """A state.

    Args:
      shapes: tree of jax.ShapeDtypeStruct with shardings.
      step: which; None for the newest.

    Raises:
      SAEError: there is none, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    there = self.steps
    step = there[-1] if step is None and there else step
    if step not in there:
      raise SAEError(
        f'no checkpoint of step {step}', where=f'{self.directory} has those of steps {there}'
      )
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
    except Exception as e:  # whatever damaged files make of the libraries that read them
      raise SAEError(
        f'the checkpoint of step {step} cannot be restored: {type(e).__name__}: {e!s:.300}',
        where=f'{self.directory / str(step)}',
        cause='files that are damaged or missing, or dictionaries of another shape',
        hint=f'move that directory away to go on from {there[:-1] or "the start"}',
      ) from e

  def wait(self) -> None:
    """Until everything is on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()
