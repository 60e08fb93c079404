"""Greenlet generators: compared with ordinary ones, and left in every way under JAX and flax."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import subprocess
import sys
import threading
import traceback
import weakref

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mechjax.errors import RunError
from mechjax.greenlets import (
  GreenletGenerator,
  generator,
  local_context,
  yield_,
  yield_from,
)

# The protocol: the same small programs, written with `yield` and with `yield_`.


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


def outcome(step, *args):
  """What a step does, in a form that can be compared."""
  try:
    return 'gives', step(*args)
  except BaseException as error:
    cause, context = error.__cause__, error.__context__
    return type(error), error.args, type(cause), type(context), getattr(error, 'value', None)


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


def count(n):
  for i in range(n):
    yield_(i)
  return 'counted'


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
    with pytest.raises(RunError, match=r'(?s)not returned.*count \(.*greenlets_test.py:\d+\)'):
      _ = gen.value
    next(gen)


def test_a_reply_that_nobody_waits_for_is_an_error():
  gen = GreenletGenerator(count, 1)
  with pytest.raises(RunError, match='nobody waits'):
    gen.reply = 1
  assert list(gen) == [0]
  with pytest.raises(RunError, match='nobody waits'):
    gen.reply = 1


def test_the_repr_says_where_it_stands():
  gen = GreenletGenerator(count, 1)
  states = [repr(gen)]
  states += [repr(gen) for _ in gen] + [repr(gen)]
  assert [s.rsplit(': ')[-1] for s in states] == ['created>', 'suspended>', 'closed>']


def test_yielding_without_a_loop_says_how_to_loop():
  with pytest.raises(RunError, match='no loop to yield to') as info:
    yield_(1)
  assert 'GreenletGenerator' in info.value.mend
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


# Order: one child at a time, in one place.


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


def in_thread(fn):
  """Runs `fn` in another thread: its result, or its exception raised here."""
  box = []

  def target():
    box.append(outcome(fn))

  thread = threading.Thread(target=target)
  thread.start()
  thread.join()
  return box[0]


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


# Contexts.


VARIABLE = contextvars.ContextVar('VARIABLE', default='default')


def test_the_function_runs_in_a_copy_of_the_callers_context():
  def fn():
    seen = [VARIABLE.get()]
    VARIABLE.set('inner')
    yield_(None)
    return seen + [VARIABLE.get()]

  token = VARIABLE.set('outer')
  try:
    for _ in (loop := GreenletGenerator(fn)):
      assert VARIABLE.get() == 'outer'
      VARIABLE.set('changed')
  finally:
    VARIABLE.reset(token)
  assert loop.value == ['outer', 'inner']


@contextlib.contextmanager
def marked(stack, name):
  stack.append(name)
  try:
    yield
  finally:
    assert stack.pop() == name


def test_local_contexts_are_closed_in_the_loop_and_open_in_the_function():
  stack = []

  def fn():
    with local_context(lambda: marked(stack, 'a')), local_context(lambda: marked(stack, 'b')):
      for _ in range(2):
        assert stack == ['a', 'b']
        yield_(None)
      try:
        yield_(None)
      except KeyError:
        assert stack == ['a', 'b']
        raise

  gen = GreenletGenerator(fn)
  for _ in range(3):
    next(gen)
    assert stack == []
  with pytest.raises(KeyError):
    gen.throw(KeyError)
  assert stack == []


def test_a_local_context_may_swallow_an_exception_and_does_without_a_loop():
  with local_context(lambda: contextlib.suppress(KeyError)):
    raise KeyError

  def fn():
    with local_context(lambda: contextlib.suppress(KeyError)):
      yield_(1)
    return 'swallowed'

  gen = GreenletGenerator(fn)
  next(gen)
  with pytest.raises(StopIteration) as info:
    gen.throw(KeyError)
  assert info.value.value == 'swallowed'


def test_a_local_jax_configuration_is_not_seen_by_the_loop():
  def fn():
    with local_context(lambda: jax.default_matmul_precision('highest')):
      yield_(jax.config.jax_default_matmul_precision)
      return jax.config.jax_default_matmul_precision

  for inside in (loop := GreenletGenerator(fn)):
    assert inside == 'highest'
    assert jax.config.jax_default_matmul_precision is None
  assert loop.value == 'highest'


PRECISION = jax.default_matmul_precision, lambda: jax.config.jax_default_matmul_precision
PROMOTION = jax.numpy_dtype_promotion, lambda: jax.config.jax_numpy_dtype_promotion.value


@contextlib.contextmanager
def variable(value):
  token = VARIABLE.set(value)
  try:
    yield
  finally:
    VARIABLE.reset(token)


SETTINGS = {
  'precision': (*PRECISION, ['high', 'highest', 'float32', 'default']),
  'promotion': (*PROMOTION, ['standard', 'strict', 'standard', 'strict']),
  'contextvar': (variable, VARIABLE.get, ['a', 'b', 'c', 'd']),
}
MANNERS = st.lists(st.sampled_from(['plain', 'local', 'both', 'neither']), min_size=1, max_size=4)


def nested(manners, setting, depth=0):
  """A generator in a generator …, each with a setting of its own, that checks it whenever its frames run."""
  make, read, values = SETTINGS[setting]
  around, own = read(), values[depth]
  with contextlib.ExitStack() as stack:
    if manners[0] in ('local', 'both'):
      other = values[(depth + 1) % 4] if manners[0] == 'both' else own
      stack.enter_context(local_context(lambda: make(other)))
    if manners[0] in ('plain', 'both'):
      stack.enter_context(make(own))
    expected = around if manners[0] == 'neither' else own
    assert read() == expected
    if manners[1:]:
      for item in GreenletGenerator(nested, manners[1:], setting, depth + 1):
        assert read() == expected
        yield_(item)
        assert read() == expected
    for item in range(2):
      yield_(item)
      assert read() == expected
  assert read() == around


@given(manners=MANNERS, setting=st.sampled_from([*SETTINGS]), leave=st.integers(0, 9))
@example(
  manners=['plain', 'neither', 'both'], setting='promotion', leave=1
)  # the outer value again
@settings(max_examples=60, deadline=None)
def test_settings_of_each_generator_are_in_force_exactly_while_its_own_frames_run(
  manners, setting, leave
):
  read = SETTINGS[setting][1]
  around = read()
  steps = 0
  for _ in GreenletGenerator(nested, manners, setting):
    assert read() == around
    steps += 1
    if steps > leave:
      break
  assert read() == around
  assert steps == min(leave + 1, 2 * len(manners))


@pytest.mark.parametrize('setting', SETTINGS)
def test_settings_come_back_when_an_exception_goes_through_nested_generators(setting):
  read, around = SETTINGS[setting][1], SETTINGS[setting][1]()
  gen = GreenletGenerator(nested, ['both', 'plain', 'local'], setting)
  next(gen), next(gen)
  with pytest.raises(KeyError):
    gen.throw(KeyError('through'))
  assert read() == around


def test_a_generator_goes_on_under_its_own_settings_after_the_context_of_the_loop_was_left():
  make, read = PRECISION

  def fn():
    yield_(read())
    with make('float32'):
      yield_(read())
      yield_(read())
    yield_(read())

  gen = GreenletGenerator(fn)
  with make('highest'):
    seen = [next(gen), next(gen), read()]
  seen += [read(), next(gen), next(gen), read()]
  gen.close()
  assert seen == [
    'highest',
    'float32',
    'highest',
    None,
    'float32',
    'highest',
    None,
  ]  # as with `yield`, but the last
  assert read() is None


def test_a_generator_closed_late_leaves_the_state_of_the_one_who_closes_it():
  """The body's exception holds the loop, so that the function stands in a trace which has ended long ago."""
  x = jnp.arange(1.0, 4.0)

  def failing(x):
    return [1 / 0 for _ in iter(lambda: next(gen), None)]

  for function in ('jit', 'scan', 'config', 'nnx grad'):
    gen = GreenletGenerator(FUNCTIONS[function], x)
    with pytest.raises(ZeroDivisionError):
      jax.jit(lambda x: failing(x))(x)
    with pytest.raises(RunError, match='outside of it'):
      next(gen)
    with jax.default_matmul_precision('float32'):
      gen.close()
      assert jax.config.jax_default_matmul_precision == 'float32'
      assert float(x.sum()) == 6
    assert_nothing_is_left_behind()


def test_a_generator_that_stands_in_a_trace_and_is_collected_elsewhere_harms_no_thread():
  def forget(x):
    gen = GreenletGenerator(FUNCTIONS['jit'], x)
    next(gen)
    box.append(gen)
    return x

  box = []
  jax.jit(forget)(jnp.arange(3.0))
  assert in_thread(lambda: (box.clear(), float(jnp.ones(3).sum()))[1]) == ('gives', 3)
  assert_nothing_is_left_behind()
  assert list(GreenletGenerator(count, 2)) == [0, 1]  # which closes the other
  assert_nothing_is_left_behind()


# References.


class Thing:
  """Something that can be watched."""


def test_nothing_sent_either_way_is_kept_alive():
  def fn():
    sent = []
    for _ in range(4):
      thing = yield_(Thing())
      gc.collect()
      sent.append(weakref.ref(thing))
      del thing
      assert sent[-1]() is None

  gen = GreenletGenerator(fn)
  got = weakref.ref(next(gen))
  assert got() is None
  got = weakref.ref(gen.send(Thing()))
  assert got() is None
  gen.reply = Thing()
  for value in gen:
    gen.reply = Thing()
    got = weakref.ref(value)
    del value
    assert got() is None


def test_a_dropped_generator_takes_its_function_with_it_without_the_collector():
  thing = Thing()
  watch = weakref.ref(thing)
  gen = GreenletGenerator(lambda thing: (yield_(1), thing), thing)
  iter(gen)  # a handle that was never used changes nothing
  next(gen)
  del thing
  gc.disable()
  try:
    assert watch() is not None
    del gen
    assert watch() is None
  finally:
    gc.enable()


def test_a_finished_generator_holds_neither_its_arguments_nor_an_unread_reply():
  def fn(thing):
    del thing
    yield_(1)

  argument, reply = Thing(), Thing()
  watches = weakref.ref(argument), weakref.ref(reply)
  for _ in (loop := GreenletGenerator(fn, argument)):
    loop.reply = reply
    del argument, reply
    break
  assert loop.done
  assert [watch() for watch in watches] == [None, None]


def edited(x):
  """Two places to look at; the first may be replaced."""
  hidden = jnp.sin(x)
  new = yield_(hidden)
  hidden = hidden if new is None else new
  del new
  yield_(hidden + 1)
  return (hidden * 2).sum()


def test_the_leak_checker_is_quiet_about_a_loop_inside_a_trace():
  def f(x):
    for value in (loop := GreenletGenerator(edited, x)):
      loop.reply = value * 3
    return loop.value

  x = jnp.arange(3.0)
  with jax.checking_leaks():
    assert jnp.allclose(jax.jit(f)(x), jnp.sum(6 * jnp.sin(x)))
    assert jnp.allclose(jax.jit(jax.grad(f))(x), 6 * jnp.cos(x))
    assert jnp.allclose(jax.vmap(f)(jnp.stack([x, x])), f(x))


def test_the_leak_checker_is_quiet_about_a_trace_inside_a_loop_that_drops_its_variable():
  x = jnp.arange(3.0)
  with jax.checking_leaks():
    for value in (loop := GreenletGenerator(jax.jit(lambda x: edited(x)), x)):
      loop.reply = value * 3
      del value
  assert jnp.allclose(loop.value, jnp.sum(6 * jnp.sin(x)))


# Leaving under JAX and flax: what was open is closed, and tracing goes on as if nothing had been.


class LinenBlock(linen.Module):
  @linen.compact
  def __call__(self, x):
    return edited(linen.Dense(3, name='inner')(x))


class LinenModel(linen.Module):
  @linen.compact
  def __call__(self, x):
    return LinenBlock(name='block')(x)


class NnxModel(nnx.Module):
  def __init__(self):
    self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    self.calls = nnx.Variable(jnp.zeros(()))

  def __call__(self, x):
    self.calls[...] += 1
    return edited(self.linear(x))


def scanned(x):
  def step(carry, _):
    return carry + edited(x * carry), None

  return jax.lax.scan(step, jnp.ones(()), None, length=2)[0]


def configured(x):
  with jax.default_matmul_precision('highest'), jax.named_scope('scope'):
    return jax.jit(lambda x: edited(x))(x)


def linen_model(x):
  model = LinenModel()
  kernel = {'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}
  return model.apply({'params': {'block': {'inner': kernel}}}, x)


def nested_greenlets(x):
  for value in (loop := GreenletGenerator(jax.jit(lambda x: edited(x)), x)):
    yield_(value)
  return loop.value


FUNCTIONS = {
  'jit': lambda x: jax.jit(lambda x: edited(x))(x),
  'grad': lambda x: jax.grad(lambda x: edited(x))(x),
  'jit of grad of checkpoint': lambda x: jax.jit(
    jax.grad(lambda x: jax.checkpoint(lambda x: edited(x))(x))
  )(x),
  'vmap': lambda x: jax.vmap(lambda x: edited(x))(x),
  'scan': scanned,
  'config': configured,
  'linen': linen_model,
  'linen in jit': lambda x: jax.jit(lambda x: linen_model(x))(x),
  'nnx': lambda x: nnx.jit(lambda model, x: model(x))(NnxModel(), x),
  'nnx grad': lambda x: nnx.grad(lambda model, x: model(x))(NnxModel(), x),
  'greenlets': nested_greenlets,
}


class Stop(Exception):
  """Raised by loop bodies below."""


def leave_by_break(fn, x):
  for _ in (loop := GreenletGenerator(fn, x)):
    break
  assert loop.done


def leave_by_return(fn, x):
  def find():
    for value in (loop := GreenletGenerator(fn, x)):
      return loop, value.shape
    return None

  assert find()[0].done


def leave_by_exception(fn, x):
  with pytest.raises(Stop) as info:  # noqa: PT012
    for _ in (loop := GreenletGenerator(fn, x)):
      raise Stop
  assert loop.done
  assert any('raise Stop' in f.line for f in traceback.extract_tb(info.value.__traceback__))


def leave_by_ctrl_c(fn, x):
  with pytest.raises(KeyboardInterrupt):  # noqa: PT012
    for _ in (loop := GreenletGenerator(fn, x)):
      raise KeyboardInterrupt
  assert loop.done


def leave_by_ctrl_c_inside(fn, x):
  gen = GreenletGenerator(fn, x)
  next(gen)
  with pytest.raises(KeyboardInterrupt):
    gen.throw(KeyboardInterrupt)


def leave_by_exception_in_the_trace_around(fn, x):
  def around(x):
    for _ in (loop := GreenletGenerator(fn, x)):
      raise Stop(loop)

  with pytest.raises(Stop) as info:
    jax.jit(around)(x)
  assert info.value.args[0].done


def leave_by_dropping(fn, x):
  gen = GreenletGenerator(fn, x)
  next(gen)
  del gen


def leave_by_collection(fn, x):
  gen = GreenletGenerator(fn, x)
  next(gen)
  cycle = [gen]
  cycle.append(cycle)
  del gen, cycle
  gc.collect()


def leave_by_collection_in_a_trace(fn, x):
  def around(x):
    y = x + 1
    leave_by_collection(fn, x)
    return y + 1

  assert jnp.allclose(jax.jit(around)(x), x + 2)


def leave_by_close(fn, x):
  with contextlib.closing(GreenletGenerator(fn, x)) as gen:
    next(gen)


def leave_at_the_end(fn, x):
  shapes = []
  for value in (loop := GreenletGenerator(fn, x)):
    loop.reply = None
    other = jax.jit(lambda v: jnp.cos(v) + 1)(jnp.ones(2))
    slope = jax.grad(lambda v: (v**2).sum())(jnp.ones(2))
    total, _ = jax.lax.scan(lambda c, v: (c + v, None), 0.0, jnp.ones(2))
    shapes += [value.shape, other.shape, slope.shape, total.shape]
  assert shapes[1:4] == [(2,), (2,), ()]
  assert jnp.all(jnp.isfinite(jax.tree.leaves(loop.value)[0]))


WAYS = {name[6:]: fn for name, fn in list(globals().items()) if name.startswith('leave_')}


def assert_nothing_is_left_behind():
  """Traces with everything that keeps state, and asks for concrete results."""
  x = jnp.arange(3.0)
  assert float(x.sum()) == 3
  assert float(jax.jit(lambda x: x.sum() + 1)(x)) == 4
  assert jax.grad(lambda x: (x**2).sum())(x).tolist() == [0, 2, 4]
  assert float(jax.lax.scan(lambda c, x: (c + x, c), 0.0, x)[0]) == 3
  assert jax.config.jax_default_matmul_precision is None
  assert 'scope' not in str(jax.make_jaxpr(jnp.sin)(1.0).eqns[0].source_info.name_stack)
  assert linen.Dense(3).parent is None
  assert set(linen.Dense(3).init(jax.random.key(0), x)['params']) == {'kernel', 'bias'}
  model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
  model.bias[...] += 1  # an error, were a trace still open
  assert float(nnx.jit(lambda model, x: model(x).sum())(model, 0 * x)) == 3
  assert list(GreenletGenerator(count, 2)) == [0, 1]


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('way', WAYS)
def test_leaving_restores_the_state_of_jax_and_flax(way, function):
  WAYS[way](FUNCTIONS[function], jnp.arange(1.0, 4.0))
  assert_nothing_is_left_behind()


def test_a_generator_left_suspended_would_be_noticed():
  gen = GreenletGenerator(FUNCTIONS['jit'], jnp.arange(3.0))
  next(gen)
  with pytest.raises(jax.errors.JAXTypeError):
    assert_nothing_is_left_behind()
  gen.close()
  assert_nothing_is_left_behind()


def test_an_unclosed_generator_collected_during_a_later_one_waits_for_its_end():
  left = []

  def fn(x):
    try:
      return FUNCTIONS['jit'](x)
    finally:
      left.append('closed')

  def forget(x):
    cycle = [GreenletGenerator(fn, x)]
    next(cycle[0])
    cycle.append(cycle)

  x = jnp.arange(3.0)
  forget(x)
  for _ in (loop := GreenletGenerator(edited, x)):
    gc.collect()
    assert left == []
  assert loop.done
  assert left == ['closed']
  assert_nothing_is_left_behind()


def test_an_edit_in_the_loop_is_the_edit_by_hand():
  def by_loop(x):
    for value in (loop := GreenletGenerator(edited, x)):
      if value.ndim and loop.reply is None:
        loop.reply = value * 3
    return loop.value

  def by_hand(x):
    return (jnp.sin(x) * 3 * 2).sum()

  x = jnp.arange(3.0)
  assert jnp.allclose(by_loop(x), by_hand(x))
  assert jnp.allclose(jax.jit(jax.grad(by_loop))(x), jax.grad(by_hand)(x))


def test_a_body_may_trace_differentiate_and_scan_with_the_values_of_the_loop():
  def fn(x):
    for value in (loop := GreenletGenerator(jax.jit(lambda x: edited(x)), x)):
      slope = jax.grad(lambda v: (jax.jit(jnp.sin)(v) ** 2).sum())(value)
      total, _ = jax.lax.scan(lambda c, v: (c + v, None), jnp.zeros(()), slope)
      loop.reply = value + total
      del value, slope, total
    return loop.value

  def by_hand(x):
    hidden = jnp.sin(x)
    return 2 * (hidden + jnp.sum(2 * jnp.sin(hidden) * jnp.cos(hidden))).sum()

  x = jnp.arange(3.0)
  assert jnp.allclose(fn(x), by_hand(x), rtol=1e-5)
  assert_nothing_is_left_behind()
