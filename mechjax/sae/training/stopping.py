"""Being asked to stop: a signal becomes a question that the loop asks between two steps.

    with asked_to_stop() as asked:
      for ...:
        if asked(): break            save and leave in order

SIGTERM is what a scheduler sends before it takes a machine away, SIGINT is Ctrl-C. A second one of the same kind does
what it would have done without us.

Sharp edge: signals reach the main thread of a process; elsewhere nothing is installed and nobody asks.
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
  """Listens while the block runs.

  Yields:
    Whether a signal has come.
  """
  came = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield came.is_set
    return
  before = {number: signal.getsignal(number) for number in SIGNALS}

  def note(number: int, frame: FrameType | None) -> None:
    came.set()
    signal.signal(number, before[signal.Signals(number)])

  for number in SIGNALS:
    signal.signal(number, note)
  try:
    yield came.is_set
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
