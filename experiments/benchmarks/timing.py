"""Measuring on a machine that others use too.

A time alone says little: the same program takes 1.5 times as long when a neighbour compiles. Every figure of the
benchmarks is therefore a RATIO of two things measured in one process, in turns (A B A B ...), so that whatever
slows one slows the other. `interleaved` takes the turns; a ratio is the median over rounds of the ratio within a
round, which a load that comes and goes cannot move.

    times = interleaved({'jit': lambda: jitted(x), 'run': lambda: iterate_all(x)})
    times.ratio('run', 'jit')

Also here: `once` (a first call, whose compilation is the point), `compilations` (how often XLA was asked),
`peak_memory` (what a call adds to the process at its highest) and `report` (a table, then the line that scripts read).

Sharp edges. JAX returns before it has computed; everything here blocks on the result. `peak_memory` needs Linux, and
sees the allocator's pages, so the call should have run once before.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

COMPILED = '/jax/core/compile/backend_compile_duration'


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of every call, by name; entry n of each list was measured in round n."""

  seconds: Mapping[str, list[float]]

  def median(self, name: str) -> float:
    """Median seconds of one call."""
    return statistics.median(self.seconds[name])

  def ratio(self, name: str, over: str) -> float:
    """Median over the rounds of the time of `name` over that of `over` in the same round."""
    return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[over]))


def once(call: Callable[[], Any]) -> float:
  """Seconds of one call, result computed."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int = 9, warmup: int = 1) -> Times:
  """Times several calls in turns.

  Args:
    calls: name -> a function without arguments, whose result is waited for.
    rounds: how often each is timed.
    warmup: how often each is called before.

  Returns:
    The seconds of every call.
  """
  for _ in range(warmup):
    for call in calls.values():
      once(call)
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  names = list(calls)
  for n in range(rounds):
    gc.collect()
    gc.disable()  # as in timeit: what one call leaves behind is not collected on the time of another
    try:
      for name in (
        names if n % 2 == 0 else reversed(names)
      ):  # none always follows the same neighbour
        seconds[name].append(once(calls[name]))
    finally:
      gc.enable()
  return Times(seconds)


@dataclasses.dataclass
class Compilations:
  """How often XLA compiled while it was watched, and for how long."""

  count: int = 0
  seconds: float = 0.0


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Counts compilations inside the block."""
  seen = Compilations()
  watching = True

  def listen(event: str, duration_secs: float, **_: Any) -> None:
    if watching and event == COMPILED:
      seen.count += 1
      seen.seconds += duration_secs

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seen
  finally:
    watching = False  # listeners cannot be taken off by public names; this one falls silent


def peak_memory(call: Callable[[], Any]) -> int:
  """Bytes by which the resident memory of this process rises, at its highest, while `call` runs."""
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # or what was freed before is used again, and nothing rises
  Path('/proc/self/clear_refs').write_text('5')  # the high-water mark starts again from here
  before = _status('VmRSS')
  jax.block_until_ready(call())
  return _status('VmHWM') - before


def _status(field: str) -> int:
  found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
  assert found, field
  return int(found[1]) * 1024


def optimised_hlo(f: Callable, *args: Any) -> str:
  """Optimised HLO without what names source lines: scopes, their tables, and the name of the module."""
  text = re.sub(r', metadata=\{[^}]*\}', '', jax.jit(f).lower(*args).compile().as_text() or '')
  tables = r'^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n*'
  text = re.sub(r'^HloModule [^,]*', '', re.sub(tables, '', text, flags=re.MULTILINE))
  assert 'ENTRY' in text, 'nothing left to compare'
  return text


def report(
  title: str, metrics: Mapping[str, Any], targets: Mapping[str, str] | None = None
) -> None:
  """Prints a table of figures (with what was promised, where something was) and the line `RESULT {json}`."""
  print(title)
  for name, value in metrics.items():
    shown = f'{value:.3f}' if isinstance(value, float) else str(value)
    print(f'  {name:<40} {shown:>12}   {(targets or {}).get(name, "")}'.rstrip())
  print('RESULT ' + json.dumps(dict(metrics)), flush=True)
