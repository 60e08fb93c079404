"""Signals to stop: the loop checks between two steps whether one has arrived.

    with catch_stop_signals() as stop_requested:
      for ...:
        if stop_requested(): break            save and exit

A scheduler sends SIGTERM before it takes a machine away; Ctrl-C sends SIGINT. A second signal of the same kind has its
usual effect.

Sharp edge: signals reach only the main thread of a process; in other threads no handler is installed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
  """Catches signals to stop while the block runs.

  Yields:
    A function that returns whether a signal has arrived.
  """
  arrived = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield arrived.is_set
    return
  previous = {number: signal.getsignal(number) for number in SIGNALS}

  def handle(number: int, frame: FrameType | None) -> None:
    arrived.set()
    signal.signal(number, previous[signal.Signals(number)])

  for number in SIGNALS:
    signal.signal(number, handle)
  try:
    yield arrived.is_set
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
