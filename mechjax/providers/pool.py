"""Threads that answer requests: replies in the order of the requests, and the listener in the thread of the caller.

    replies = answer_all(answer, requests, concurrency=8, listener=listener, cancel=session.cancel)

The caller's thread takes replies from a queue as they arrive and passes them to the listener, so that a listener needs
no lock. An interrupt (Ctrl-C), or an exception of the listener or of a thread, first lets the listener see what has
arrived, then stops: threads end at their next request, waits are broken off, `cancel` ends what is in flight, and the
exception is raised.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

from mechjax.providers.requests import Answer, Listener, Reply, Request

_PATIENCE = 2.0
"""Seconds to wait for threads that were stopped; they are daemons, so that a late one does not keep a process alive."""


def answer_all(
  answer: Callable[[Request, threading.Event], Reply],
  requests: Sequence[Request],
  concurrency: int,
  listener: Listener | None = None,
  cancel: Callable[[], None] = lambda: None,
) -> list[Reply]:
  """Answers requests in threads.

  Args:
    answer: (request, stop) -> reply, called in the threads; it returns soon after `stop` is set.
    requests: the requests.
    concurrency: number of threads.
    listener: is called with the number of a request and its reply, in the thread of the caller.
    cancel: ends what is in flight.

  Returns:
    Replies in the order of the requests.
  """
  run = _Run(answer, requests, listener)
  threads = [
    threading.Thread(target=run.work, daemon=True) for _ in range(min(concurrency, len(requests)))
  ]
  try:
    for thread in threads:
      thread.start()
    while len(run.replies) < len(requests):
      run.take()
  except BaseException:
    run.stop.set()
    cancel()
    _finish(threads)
    run.pass_on_rest()
    raise
  _finish(threads)
  return [run.replies[n] for n in range(len(requests))]


class _Run:
  """Requests that wait, and replies that have arrived."""

  def __init__(
    self,
    answer: Callable[[Request, threading.Event], Reply],
    requests: Sequence[Request],
    listener: Listener | None,
  ) -> None:
    self.answer, self.listener = answer, listener
    self.stop = threading.Event()
    self.waiting: queue.SimpleQueue[tuple[int, Request]] = queue.SimpleQueue()
    self.arrived: queue.SimpleQueue[tuple[int, Reply | BaseException]] = queue.SimpleQueue()
    self.replies: dict[int, Reply] = {}
    self.heard: set[int] = set()
    for numbered in enumerate(requests):
      self.waiting.put(numbered)

  def work(self) -> None:
    """Answers requests until none is left; runs in each thread."""
    while not self.stop.is_set():
      try:
        number, request = self.waiting.get_nowait()
      except queue.Empty:
        return
      try:
        self.arrived.put((number, self.answer(request, self.stop)))
      except BaseException as e:
        self.arrived.put((number, e))
        return

  def take(self) -> None:
    """Waits for one reply; runs in the thread of the caller, like everything below."""
    number, reply = self.arrived.get()
    if isinstance(reply, BaseException):
      raise reply
    self.replies[number] = reply
    self._pass_on(number, reply)

  def pass_on_rest(self) -> None:
    """Passes on the answers that arrived before the stop; an exception here would hide the one that stopped."""
    with contextlib.suppress(queue.Empty):
      while True:
        number, reply = self.arrived.get_nowait()
        if isinstance(reply, Answer):
          self.replies[number] = reply
    with contextlib.suppress(Exception):
      for number in self.replies.keys() - self.heard:
        self._pass_on(number, self.replies[number])

  def _pass_on(self, number: int, reply: Reply) -> None:
    self.heard.add(number)
    if self.listener is not None:
      self.listener(number, reply)


def _finish(threads: Sequence[threading.Thread]) -> None:
  deadline = time.monotonic() + _PATIENCE
  for thread in threads:
    if thread.ident is not None:
      thread.join(max(0.0, deadline - time.monotonic()))
