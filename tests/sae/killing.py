"""Kills a process repeatedly at random moments, until its work is complete.

    kills = run_until_done(harvest_all, (directory,), moments=np.random.default_rng(0).uniform(0, 0.5, 20))

The process is a real one and the signal is SIGKILL, which no process can catch. Its work is a function of a module that
a new process can import, called as `work(begun, *args)`; it calls `begun()` when the part to be killed begins. The
moments are counted from that call, so the work is killed and not the imports. Processes are forked from a server that
has imported JAX and mechjax and has not started a backend, so that a new process starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

_PRELOADED = [
  'jax',
  'numpy',
  'orbax.checkpoint',
  'tensorstore',
  'mechjax.sae.store',
  'mechjax.sae.training.loop',
]
_PATIENCE = 120.0


def run_until_done(work: Callable[..., None], args: Sequence[Any], moments: Sequence[float]) -> int:
  """Runs a function in processes that are killed, and last in one that is not.

  Args:
    work: (begun, *args) -> None.
    args: of the function.
    moments: when to kill, in seconds after `begun` was called, one for each process; those that the work did not need
      are left out.

  Returns:
    The number of processes that were killed at their work.

  Raises:
    AssertionError: a process failed by itself.
  """
  kills = 0
  for moment in moments:
    if done_by(work, args, moment):
      break
    kills += 1
  else:
    assert done_by(work, args, None)
  return kills


def done_by(work: Callable[..., None], args: Sequence[Any], moment: float | None) -> bool:
  """Whether a process came to its end before it was killed, so many seconds after it had begun, or never."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_PRELOADED)
  heard, said = context.Pipe(duplex=False)
  process = context.Process(target=_run, args=(said, work, *args), daemon=True)
  process.start()
  assert process.pid is not None
  said.close()
  assert heard.poll(_PATIENCE), f'no sign of {work.__name__}'
  process.join(_PATIENCE if moment is None else moment)
  if process.exitcode is None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
  heard.close()
  assert process.exitcode in (0, -signal.SIGKILL), f'{work.__name__} ended {process.exitcode}'
  return process.exitcode == 0


def _run(said: Any, work: Callable[..., None], *args: Any) -> None:
  work(lambda: said.send('begun'), *args)
