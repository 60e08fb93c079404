"""Leaving under JAX and flax: open contexts are closed, and tracing continues as before."""

from __future__ import annotations

import contextlib
import gc
import traceback

import jax
import jax.numpy as jnp
import pytest

from mechjax.errors import RunError
from mechjax.greenlets import GreenletGenerator
from tests.greenlets.programs import (
  FUNCTIONS,
  assert_nothing_is_left_behind,
  count,
  edited,
  in_thread,
)


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
