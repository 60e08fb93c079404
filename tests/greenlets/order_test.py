"""One child runs at a time, in one thread, and the one that started later ends first."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mechjax.errors import RunError
from mechjax.greenlets import GreenletGenerator, yield_
from tests.greenlets.programs import count, in_thread


def test_inner_yields_go_to_the_inner_loop():
  def inner(n):
    yield_(('inner', n))
    return n

  def outer():
    for n in range(2):
      got = []
      for value in (loop := GreenletGenerator(inner, n)):
        got.append(value)
        yield_(('outer saw', value))
      assert loop.value == n
      yield_(got)

  seen = list(GreenletGenerator(outer))
  assert seen == [item for n in range(2) for item in (('outer saw', ('inner', n)), [('inner', n)])]


def test_loops_nest_side_by_side_in_one_function():
  seen = [(i, j) for i in GreenletGenerator(count, 3) for j in GreenletGenerator(count, i)]
  assert seen == [(1, 0), (2, 0), (2, 1)]


def test_two_generators_in_lock_step_are_refused_and_both_are_closed():
  left = []

  def fn(name):
    try:
      return count(3)
    finally:
      left.append(name)

  with pytest.raises(RunError, match=r'(?s)later one is still suspended.*zip') as info:
    for _ in zip(GreenletGenerator(fn, 'first'), GreenletGenerator(fn, 'second')):
      pass
  assert left == ['second', 'first']  # although a traceback holds the frames of the failed step
  assert info.value.__traceback__ is not None


def test_a_generator_dropped_out_of_turn_is_closed_after_the_later_one():
  left = []

  def fn(name):
    try:
      return count(3)
    finally:
      left.append(name)

  first, second = GreenletGenerator(fn, 'first'), GreenletGenerator(fn, 'second')
  next(first), next(second)
  with pytest.raises(RunError, match='later one'):
    first.close()
  del first
  assert left == []
  assert list(second) == [1, 2]
  assert left == ['second', 'first']


def test_a_function_that_returns_before_its_child_is_closed_is_an_error():
  kept, left = [], []

  def child():
    try:
      yield_(1)
    finally:
      left.append('child')

  def careless():
    kept.append(GreenletGenerator(child))
    next(kept[0])

  with pytest.raises(RunError, match='still suspended'):
    list(GreenletGenerator(careless))
  assert left == ['child']
  assert kept[0].done


def test_a_child_left_in_the_frames_of_an_exception_is_closed_before_the_parent_ends():
  left = []

  def child():
    try:
      yield_(1)
    finally:
      left.append('child')

  def parent():
    try:
      gen = GreenletGenerator(child)
      next(gen)
      raise KeyError('parent')
    finally:
      left.append('parent')

  with pytest.raises(KeyError) as info:
    list(GreenletGenerator(parent))
  assert left == ['parent', 'child']
  assert info.value.args == ('parent',)


def test_a_parents_generator_cannot_be_stepped_by_a_child():
  def fn():
    next(gen)

  gen = GreenletGenerator(count, 2)
  next(gen)
  with pytest.raises(RunError, match='another greenlet'):
    list(GreenletGenerator(fn))
  assert list(gen) == [1]


@pytest.mark.parametrize('step', ['__next__', '__iter__', 'close'])
def test_another_thread_is_refused_and_the_loop_goes_on_unharmed(step):
  gen = GreenletGenerator(count, 3)
  next(gen)
  assert in_thread(getattr(gen, step))[0] is RunError
  assert list(gen) == [1, 2]


def test_a_step_of_the_loops_own_handle_in_another_thread_does_not_end_the_loop():
  handle = iter(GreenletGenerator(count, 3))
  assert next(handle) == 0
  assert in_thread(handle.__next__)[0] is RunError
  assert list(handle) == [1, 2]


def test_a_generator_may_be_made_in_one_thread_and_used_in_another():
  gen = GreenletGenerator(count, 3)
  assert in_thread(lambda: list(gen)) == ('gives', [0, 1, 2])


def test_a_generator_dropped_in_another_thread_is_closed_in_its_own():
  where = []

  def fn():
    try:
      return count(3)
    finally:
      where.append(threading.get_ident())

  box = [GreenletGenerator(fn)]
  next(box[0])
  in_thread(box.clear)
  assert where == []
  assert list(GreenletGenerator(count, 2)) == [0, 1]
  assert where == [threading.get_ident()]


def test_yielding_from_another_thread_is_an_error():
  def fn():
    return in_thread(lambda: yield_(1))

  loop = GreenletGenerator(fn)
  assert list(loop) == []
  assert loop.value[0] is RunError


def test_a_program_that_ends_with_a_suspended_generator_ends_quietly():
  program = """
from mechjax.greenlets import GreenletGenerator, yield_
left, cycle = GreenletGenerator(yield_, 1), [GreenletGenerator(yield_, 2)]
cycle.append(cycle)
print(next(left) + next(cycle[0]))
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, '3\n', '')
