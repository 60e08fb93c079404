"""Measurements on a machine with other load.

A time alone says little: the same program takes 1.5 times as long while another process compiles. Every metric of the
benchmarks is therefore a RATIO of two calls that are measured in one process alternately (A B A B ...), so that any
load slows both. `interleave` makes the calls; a ratio is the median over rounds of the ratio within a round, which a
temporary load does not change.

    times = interleave({'jit': lambda: jitted(x), 'run': lambda: iterate_all(x)})
    times.ratio('run', 'jit')

Also here: `time_once` (for a first call, which compiles), `compilations` (counts compilations by XLA),
`peak_memory` (peak of the memory that a call adds) and `report` (a table, then one line for scripts to parse).

Sharp edges. JAX returns before it has computed; every function here blocks on the result. `peak_memory` needs Linux,
and it sees the allocator's pages, so the call should have run once before.
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


def time_once(call: Callable[[], Any]) -> float:
  """Seconds of one call, until its result is computed."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def interleave(calls: Mapping[str, Callable[[], Any]], rounds: int = 9, warmup: int = 1) -> Times:
  """Times several calls alternately.

  Args:
    calls: name -> a function without arguments. Each call is timed until its result is computed.
    rounds: number of timed calls of each function.
    warmup: number of calls of each function before these.

  Returns:
    The seconds of every call.
  """
  for _ in range(warmup):
    for call in calls.values():
      time_once(call)
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  names = list(calls)
  for n in range(rounds):
    gc.collect()
    gc.disable()  # as in timeit: the garbage of one call is not collected during another
    try:
      for name in (
        names if n % 2 == 0 else reversed(names)
      ):  # no call always follows the same other call
        seconds[name].append(time_once(calls[name]))
    finally:
      gc.enable()
  return Times(seconds)


@dataclasses.dataclass
class Compilations:
  """Number and total seconds of the compilations by XLA in a block."""

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
    watching = False  # no public function removes a listener; this one ignores further events


def peak_memory(call: Callable[[], Any]) -> int:
  """Peak, in bytes, of the rise of this process's resident memory while `call` runs."""
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # otherwise the call reuses freed memory, and no rise is seen
  Path('/proc/self/clear_refs').write_text('5')  # resets the peak to the present value
  before = _status('VmRSS')
  jax.block_until_ready(call())
  return _status('VmHWM') - before


def _status(field: str) -> int:
  found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
  assert found, field
  return int(found[1]) * 1024


def optimised_hlo(f: Callable, *args: Any) -> str:
  """Optimised HLO without references to the source: scopes, their tables, and the name of the module."""
  text = re.sub(r', metadata=\{[^}]*\}', '', jax.jit(f).lower(*args).compile().as_text() or '')
  tables = r'^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n*'
  text = re.sub(r'^HloModule [^,]*', '', re.sub(tables, '', text, flags=re.MULTILINE))
  assert 'ENTRY' in text, 'nothing left to compare'
  return text


def report(
  title: str, metrics: Mapping[str, Any], targets: Mapping[str, str] | None = None
) -> None:
  """Prints a table of metrics, with their targets where there are any, and the line `RESULT {json}`."""
  print(title)
  for name, value in metrics.items():
    shown = f'{value:.3f}' if isinstance(value, float) else str(value)
    print(f'  {name:<40} {shown:>12}   {(targets or {}).get(name, "")}'.rstrip())
  print('RESULT ' + json.dumps(dict(metrics)), flush=True)
