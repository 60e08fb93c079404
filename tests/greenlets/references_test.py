"""References: values that pass in either direction are kept alive only by the function and the loop."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp

from mechjax.greenlets import GreenletGenerator, yield_
from tests.greenlets.programs import edited


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
