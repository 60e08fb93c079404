"""Context variables, JAX's settings and local contexts are in force exactly while the frames that set them run."""

from __future__ import annotations

import contextlib
import contextvars

import jax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mechjax.greenlets import GreenletGenerator, local_context, yield_

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


# Settings come again, so that one above a local context may equal the one below it.
SETTINGS = {
  'precision': (*PRECISION, ['high', 'highest', 'high', 'highest']),
  'promotion': (*PROMOTION, ['standard', 'strict', 'standard', 'strict']),
  'contextvar': (variable, VARIABLE.get, ['a', 'b', 'a', 'b']),
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
# The outer value again:
@example(manners=['plain', 'neither', 'both'], setting='promotion', leave=1)
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
    inside, outside = [next(gen), next(gen)], [read()]
  outside.append(read())
  inside += [next(gen), next(gen)]
  outside.append(read())
  gen.close()
  assert inside == ['highest', 'float32', 'float32', 'highest']
  assert outside == ['highest', None, None]
  assert read() is None
