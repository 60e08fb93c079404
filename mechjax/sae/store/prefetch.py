"""Prefetching: the next items are prepared while the current one is used.

    with Prefetch(batches, depth=2) as ahead:
      for batch in ahead: ...
    ahead.waited / ahead.elapsed              share of the time spent waiting

One thread runs an iterator, and is never more than `depth` items ahead: it starts an item only when there is room for
it, so the item in use and `depth` complete or partial items are in memory. The waiting time is measured, because a slow
pipeline looks like a slow model.

An iterator that takes minutes for an item should call `give_up_if_closed` regularly, so that closing does not wait for
an item that will not be used. This also works through iterators that read from another `Prefetch`.

Sharp edges: an error of the iterator is raised in place of its item. Closing interrupts the iterator only at a call of
`give_up_if_closed`; otherwise the thread stops after the current item.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from mechjax.errors import SAEError

T = TypeVar('T')
_POLL_SECONDS = 0.05
_thread = threading.local()


class _GivenUp(BaseException):
  """Ends an iterator whose items are no longer needed; iterators must not catch it."""


def give_up_if_closed() -> None:
  """Ends the calling iterator if the `Prefetch` that runs it has been closed."""
  reader = getattr(_thread, 'reader', None)
  if reader is not None and reader.closed:
    raise _GivenUp


class Prefetch(Generic[T]):
  """An iterator that runs ahead in a separate thread.

  Attributes:
    waited: seconds spent waiting for items.
    elapsed: seconds since the first item was requested.
  """

  def __init__(self, items: Iterable[T], depth: int = 2):
    """Starts the thread.

    Args:
      items: items to prefetch.
      depth: number of items to prepare ahead.

    Raises:
      SAEError: `depth` is less than 1.
    """
    if depth < 1:
      raise SAEError(f'depth={depth} should be at least 1')
    self.waited = 0.0
    self._start: float | None = None
    self._made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    self._room = threading.Semaphore(depth)
    self._closed = False
    self._outer: Prefetch | None = getattr(_thread, 'reader', None)
    self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
    self._thread.start()

  @property
  def elapsed(self) -> float:
    return 0.0 if self._start is None else time.perf_counter() - self._start

  @property
  def closed(self) -> bool:
    """Whether no more items are needed: this one is closed, or the one whose thread created it."""
    return self._closed or (self._outer is not None and self._outer.closed)

  def __iter__(self) -> Iterator[T]:
    return self

  def __next__(self) -> T:
    return self.take(give_up=None)

  def take(self, give_up: Callable[[], bool] | None) -> Any:
    """The next item.

    Args:
      give_up: called repeatedly while waiting; waiting ends if it returns True. None to wait without limit.

    Returns:
      The item, or None if `give_up` ended the waiting.

    Raises:
      StopIteration: there are no more.
    """
    start = time.perf_counter()
    self._start = start if self._start is None else self._start
    kind, item = self._await(give_up)
    self.waited += time.perf_counter() - start
    if kind == 'item':
      self._room.release()
    elif kind in ('end', 'error'):
      self._made.put((kind, item))  # a later call ends in the same way
      raise StopIteration if kind == 'end' else item
    return item

  def close(self) -> None:
    """Stops the thread and waits for it; there are no more items afterwards."""
    self._closed = True
    self._room.release()
    self._thread.join()
    self._made = queue.SimpleQueue()
    self._made.put(('end', None))

  def __enter__(self) -> Prefetch[T]:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _await(self, give_up: Callable[[], bool] | None) -> tuple[str, Any]:
    if give_up is None:
      return self._made.get()
    while not give_up():
      with contextlib.suppress(queue.Empty):
        return self._made.get(timeout=_POLL_SECONDS)
    return 'given up', None

  def _run(self, items: Iterable[T]) -> None:
    _thread.reader = self
    try:
      iterator = iter(items)
      while self._room.acquire() and not self._closed:
        self._made.put(('item', next(iterator)))
    except StopIteration:
      self._made.put(('end', None))
    except BaseException as e:  # it is raised again in the thread of the caller
      self._made.put(('error', e))
