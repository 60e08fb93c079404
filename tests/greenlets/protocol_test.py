"""Greenlet generators behave like ordinary ones: the same small programs, with `yield` and with `yield_`."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.errors import RunError
from mechjax.greenlets import GreenletGenerator, generator, yield_, yield_from
from tests.greenlets.programs import count, outcome


def plain_sub(n, log):
  try:
    log.append((yield n))
    log.append((yield n + 1))
  except KeyError:
    log.append('sub caught')
  return ('sub', n)


def plain_program(program, log):
  try:
    for kind, n in program:
      if kind == 'yield':
        log.append((yield n))
      elif kind == 'catch':
        try:
          log.append((yield n))
        except ValueError as error:
          log.append(error.args)
      elif kind == 'swallow':
        try:
          log.append((yield n))
        except BaseException as error:
          log.append(type(error))
      elif kind == 'translate':
        try:
          yield n
        except ValueError as error:
          raise KeyError(n) from error
      elif kind == 'delegate':
        log.append((yield from plain_sub(n, log)))
      elif kind == 'iterate':
        log.append((yield from [n, n]))
      elif kind == 'return':
        return n
      else:
        raise {'raise': ValueError, 'stop': StopIteration, 'exit': GeneratorExit}[kind](n)
    return 'end'
  finally:
    log.append('left')


def nonlocal_program(program, log):
  try:
    for kind, n in program:
      if kind == 'yield':
        log.append(yield_(n))
      elif kind == 'catch':
        try:
          log.append(yield_(n))
        except ValueError as error:
          log.append(error.args)
      elif kind == 'swallow':
        try:
          log.append(yield_(n))
        except BaseException as error:
          log.append(type(error))
      elif kind == 'translate':
        try:
          yield_(n)
        except ValueError as error:
          raise KeyError(n) from error
      elif kind == 'delegate':
        log.append(yield_from(plain_sub(n, log)))
      elif kind == 'iterate':
        log.append(yield_from([n, n]))
      elif kind == 'return':
        return n
      else:
        raise {'raise': ValueError, 'stop': StopIteration, 'exit': GeneratorExit}[kind](n)
    return 'end'
  finally:
    log.append('left')


KINDS = ['yield', 'yield', 'catch', 'swallow', 'translate', 'delegate', 'iterate']
KINDS += ['return', 'raise', 'stop', 'exit']
PROGRAMS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99)), max_size=6)
STEPS = st.lists(
  st.one_of(
    st.tuples(st.just('__next__')),
    st.tuples(st.just('__next__')),
    st.tuples(st.just('send'), st.one_of(st.none(), st.integers(100, 199))),
    st.tuples(
      st.just('throw'),
      st.sampled_from([ValueError('v'), KeyError('k'), GeneratorExit(), StopIteration(7)]),
    ),
    st.tuples(st.just('close')),
  ),
  max_size=10,
)


@given(program=PROGRAMS, steps=STEPS)
@settings(max_examples=400, deadline=None)
def test_any_sequence_of_steps_does_what_it_does_to_an_ordinary_generator(program, steps):
  logs = [], []
  plain = plain_program(program, logs[0])
  ours = GreenletGenerator(nonlocal_program, program, logs[1])
  for name, *args in steps:
    fresh = [type(a)(*a.args) if isinstance(a, BaseException) else a for a in args]
    assert outcome(getattr(ours, name), *args) == outcome(getattr(plain, name), *fresh)
    assert logs[0] == logs[1]
    assert ours.done == (plain.gi_frame is None)
  while not ours.done:  # a program that swallows GeneratorExit needs several
    assert outcome(ours.close) == outcome(plain.close)
  assert logs[0] == logs[1]


@given(program=PROGRAMS)
@settings(max_examples=50, deadline=None)
def test_yield_from_a_greenlet_generator_is_the_call_itself(program):
  def direct(log):
    return nonlocal_program(program, log)

  def relayed(log):
    return yield_from(GreenletGenerator(nonlocal_program, program, log))

  seen = []
  for fn in (direct, relayed):
    log = []
    gen = GreenletGenerator(fn, log)
    outcomes = [outcome(next, gen)]
    for i in range(8):
      outcomes.append(outcome(gen.send, i) if i != 2 else outcome(gen.throw, ValueError('two')))
    seen.append(([o[:2] for o in outcomes], log))
    while not gen.done:
      outcome(gen.close)
  assert seen[0] == seen[1]


def test_a_for_loop_sends_replies_and_keeps_the_value():
  def fn(n):
    return [yield_(i) for i in range(n)]

  for i in (loop := GreenletGenerator(fn, 4)):
    if i % 2:
      loop.reply = i * 10
  assert loop.value == [None, 10, None, 30]
  assert loop.done


def test_a_decorated_function_keeps_its_name_and_gives_a_fresh_generator_per_call():
  counted = generator(count)
  assert counted.__name__ == 'count'
  assert list(counted(3)) == list(counted(3)) == [0, 1, 2]


def test_a_for_loop_goes_on_where_next_stopped():
  gen = GreenletGenerator(count, 4)
  assert next(gen) == 0
  assert list(gen) == [1, 2, 3]
  assert list(gen) == []


def test_a_generator_used_by_itself_says_it_is_already_executing():
  def fn():
    for step in (gen.__next__, gen.close, lambda: gen.send(1), lambda: gen.throw(KeyError)):
      with pytest.raises(ValueError, match='already executing'):
        step()
    yield_('fine')

  gen = GreenletGenerator(fn)
  assert list(gen) == ['fine']


def test_the_value_of_an_unfinished_generator_is_an_error_that_names_the_function():
  gen = GreenletGenerator(count, 2)
  for _ in range(2):
    with pytest.raises(RunError, match=r'(?s)not returned.*count \(.*programs.py:\d+\)'):
      _ = gen.value
    next(gen)


def test_a_reply_that_nobody_waits_for_is_an_error():
  gen = GreenletGenerator(count, 1)
  with pytest.raises(RunError, match='a reply was read or set'):
    gen.reply = 1
  assert list(gen) == [0]
  with pytest.raises(RunError, match='a reply was read or set'):
    gen.reply = 1


def test_the_repr_says_where_it_stands():
  gen = GreenletGenerator(count, 1)
  states = [repr(gen)]
  states += [repr(gen) for _ in gen] + [repr(gen)]
  assert [s.rsplit(': ')[-1] for s in states] == ['created>', 'suspended>', 'closed>']


def test_yielding_without_a_loop_says_how_to_loop():
  with pytest.raises(RunError, match='outside of a loop over a GreenletGenerator') as info:
    yield_(1)
  assert 'GreenletGenerator' in info.value.hint
  with pytest.raises(RunError):
    yield_from([1])


def test_the_traceback_of_an_exception_inside_shows_the_line_that_raised():
  def fn():
    yield_(1)
    raise ZeroDivisionError('inside')  # the line to be found

  with pytest.raises(ZeroDivisionError) as info:
    list(GreenletGenerator(fn))
  lines = [frame.line for frame in traceback.extract_tb(info.value.__traceback__)]
  assert any('the line to be found' in line for line in lines)


def test_the_traceback_of_what_was_thrown_in_shows_where_the_function_stood():
  gen = GreenletGenerator(count, 3)
  next(gen)
  with pytest.raises(KeyError) as info:
    gen.throw(KeyError('thrown'))
  assert any(frame.name == 'count' for frame in traceback.extract_tb(info.value.__traceback__))


def test_the_traceback_of_an_exception_in_the_loop_shows_the_loops_line_only_once():
  with pytest.raises(ZeroDivisionError) as info:  # noqa: PT012
    for i in GreenletGenerator(count, 3):
      1 / i
  lines = [frame.line for frame in traceback.extract_tb(info.value.__traceback__)]
  assert len(lines) == 1
  assert lines[0].startswith('1 / i')
