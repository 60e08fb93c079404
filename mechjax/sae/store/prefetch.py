"""What is needed next is made while the last is being used.

    with Prefetch(batches, depth=2) as ahead:
      for batch in ahead: ...
    ahead.waited / ahead.elapsed              share of the time in which training stood still

One thread runs an iterator, and is never more than `depth` items ahead: an item is begun only when there is room for
it, so what is in memory is the item in use and `depth` others, whole or half made. How long the user waited is
measured, because a pipeline that is too slow looks like a slow model.

Whoever makes an item for minutes calls `give_up_if_closed` now and then, so that closing need not wait for an item that
nobody will take. This works through iterators that themselves read from a `Prefetch`.

Sharp edges: an error of the iterator is raised where its item would have come. Closing does not interrupt what the
iterator is doing unless it asks; the thread stops after that.
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
  """Ends an iterator whose items nobody wants any more; nobody is to catch it on the way."""


def give_up_if_closed() -> None:
  """Ends the iterator that this is called from, if what reads it ahead has been closed."""
  reader = getattr(_thread, 'reader', None)
  if reader is not None and reader.closed:
    raise _GivenUp


class Prefetch(Generic[T]):
  """An iterator that runs ahead in a thread of its own.

  Attributes:
    waited: seconds in which an item was asked for and not there.
    elapsed: seconds since the first item was asked for.
  """

  def __init__(self, items: Iterable[T], depth: int = 2):
    """Starts the thread.

    Args:
      items: what to run through.
      depth: how many items are made ahead.

    Raises:
      SAEError: none is to be made ahead.
    """
    if depth < 1:
      raise SAEError(f'{depth} items made ahead; at least 1 is wanted')
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
    """Whether nobody wants more items: this one is closed, or the one in whose thread it was made."""
    return self._closed or (self._outer is not None and self._outer.closed)

  def __iter__(self) -> Iterator[T]:
    return self

  def __next__(self) -> T:
    return self.take(give_up=None)

  def take(self, give_up: Callable[[], bool] | None) -> Any:
    """The next item.

    Args:
      give_up: asked while it is not there; None to wait however long it takes.

    Returns:
      The item, or None if waiting was given up.

    Raises:
      StopIteration: there are no more.
    """
    asked = time.perf_counter()
    self._start = asked if self._start is None else self._start
    kind, item = self._await(give_up)
    self.waited += time.perf_counter() - asked
    if kind == 'item':
      self._room.release()
    elif kind in ('end', 'error'):
      self._made.put((kind, item))  # whoever asks again hears the same
      raise StopIteration if kind == 'end' else item
    return item

  def close(self) -> None:
    """Stops the thread and waits for it; there are no more items then."""
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
    except BaseException as e:  # the user's thread is where it can be handled
      self._made.put(('error', e))
