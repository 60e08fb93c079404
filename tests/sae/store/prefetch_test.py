"""Prefetching is in order, no further than allowed, measured, and ends when it is closed."""

import itertools
import threading
import time
import types

import pytest

from mechjax.sae import SAEError
from mechjax.sae.store import Prefetch, prefetch
from mechjax.sae.store.prefetch import give_up_if_closed


class Made:
  """An iterator that counts what it has begun."""

  def __init__(self, items=None, seconds=0.0):
    self.begun, self.items, self.seconds = 0, iter(items or itertools.count()), seconds

  def __iter__(self):
    return self

  def __next__(self):
    self.begun += 1
    time.sleep(self.seconds)
    return next(self.items)


def reaches(made, n, seconds=0.1):
  """Whether n items are begun, however long the thread takes for that, and no more a little later."""
  deadline = time.monotonic() + 60
  while made.begun < n and time.monotonic() < deadline:
    time.sleep(0.001)
  time.sleep(seconds)
  return made.begun == n


@pytest.mark.parametrize('depth', [1, 2, 7])
def test_items_come_in_order_and_then_no_more(depth):
  with Prefetch(range(50), depth=depth) as ahead:
    assert list(ahead) == list(range(50))
    assert list(ahead) == []


@pytest.mark.parametrize('depth', [1, 3])
def test_never_more_items_are_begun_than_there_is_room_for(depth):
  made = Made()
  with Prefetch(made, depth=depth) as ahead:
    assert reaches(made, depth)
    for n in range(1, 4):
      next(ahead)
      assert reaches(made, depth + n)


def test_an_error_comes_where_its_item_would_have_come_and_stays():
  def broken():
    yield from range(3)
    raise ZeroDivisionError('the fourth')

  with Prefetch(broken(), depth=10) as ahead:
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
      with pytest.raises(ZeroDivisionError, match='the fourth'):
        next(ahead)


def test_waiting_is_measured_for_a_slow_producer():
  with Prefetch(Made(range(8), seconds=0.05), depth=1) as slow:
    list(slow)
  assert slow.waited / slow.elapsed > 0.8


def test_the_time_of_a_slow_user_is_not_counted_as_waiting(monkeypatch):
  """The test advances the clock itself, because another thread can be late on a busy machine."""
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(prefetch, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now))
  with Prefetch(range(8), depth=2) as ahead:
    for _ in ahead:
      clock.now += 1.0
    assert (ahead.elapsed, ahead.waited) == (8.0, 0.0)


def test_nothing_is_measured_before_the_first_item_is_asked_for():
  with Prefetch(range(3)) as ahead:
    time.sleep(0.05)
    assert ahead.elapsed == ahead.waited == 0


def test_closing_stops_the_thread_and_whoever_asks_then_hears_that_it_is_over():
  before = threading.active_count()
  made = Made()
  ahead = Prefetch(made, depth=3)
  next(ahead)
  ahead.close()
  begun = made.begun
  assert threading.active_count() == before
  assert list(ahead) == []
  ahead.close()
  assert made.begun == begun


def test_one_inside_another_is_closed_with_it():
  before = threading.active_count()

  def nested():
    with Prefetch(Made(), depth=2) as inner:
      yield from inner

  with Prefetch(nested(), depth=2) as outer:
    assert [next(outer) for _ in range(5)] == [0, 1, 2, 3, 4]
  assert threading.active_count() == before


def test_an_item_that_takes_minutes_is_given_up_by_who_asks():
  def slow():
    yield 0
    while True:
      time.sleep(0.01)
      give_up_if_closed()

  def nested():
    with Prefetch(slow(), depth=1) as inner:
      yield from inner

  for items in (slow(), nested()):
    with Prefetch(items, depth=2) as ahead:
      assert next(ahead) == 0
    assert not ahead._thread.is_alive()
  give_up_if_closed()  # this thread does not run ahead of a reader


def test_nothing_ahead_is_refused():
  with pytest.raises(SAEError, match='depth=0 should be at least 1'):
    Prefetch(range(3), depth=0)
