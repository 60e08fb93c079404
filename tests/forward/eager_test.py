"""Eager runs: models that cannot be staged, the same values as stepped runs, and no stale caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks.timing import compilations
from mechjax import harvest, sites
from mechjax.errors import RunError
from mechjax.harvest import sow
from tests.forward import toy

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def undecided(x):
  """Depends on the data in ways that no trace can follow."""
  x = sow(jnp.tanh(x), name='first')
  if x.sum() > 0:
    return sow(x * 2, name='positive')
  for n in range(int(-x.sum() * 3)):
    with sites.layer(n):
      x = sow(x + 1, name='step')
  return x


def test_python_that_depends_on_the_data_is_followed():
  forward = mechjax.iterate(undecided, eagerly=True)
  assert [n for _, n, _ in forward(jnp.ones(2))] == ['first', 'positive']
  assert [(i, n) for i, n, _ in forward(-jnp.ones(2))] == [
    (None, 'first'),
    *((i, 'step') for i in range(4)),
  ]
  for _, name, value in (run := forward(-jnp.ones(2))):
    if name == 'first':
      run.modified_value = -value
  close(run.retval, 2 * np.tanh(np.ones(2)))
  with pytest.raises(jax.errors.TracerBoolConversionError):
    mechjax.iterate(undecided)(jnp.ones(2))


def test_jitted_blocks_show_concrete_values_and_follow_edits_in_every_run():
  f, params = toy.MODELS['jitted']
  eager, plain = mechjax.iterate(f, eagerly=True), jax.jit(f)
  reaped, before = harvest.reap(f, sites='*')(params, toy.X), plain(params, toy.X)
  for scale in (0.0, 2.0):
    for layer, name, value in (run := eager(params, toy.X)):
      site = name if layer is None else f'{name}.{layer}'
      assert not isinstance(value, jax.core.Tracer)
      if layer in (0, 1):
        close(value, reaped[site])
      if site == 'mlp_out.2':
        run.modified_value = value * scale
    close(run.retval, harvest.plant(f)({'mlp_out.2': lambda v: v * scale}, params, toy.X))
    np.testing.assert_array_equal(plain(params, toy.X), before)
    close(f(params, toy.X), before)


def test_scans_loops_and_branches_are_plain_python():
  def f(x):
    x, _ = jax.lax.scan(lambda x, w: (sow(x * w, name='scanned'), None), x, jnp.array([2.0, 3.0]))
    x = jax.lax.while_loop(lambda x: x < 50, lambda x: sow(x * 2, name='doubled'), x)
    return jax.lax.cond(x > 60, lambda x: sow(-x, name='high'), lambda x: sow(x, name='low'), x)

  run = mechjax.iterate(f, eagerly=True)(jnp.float32(1))
  assert [(n, float(v)) for _, n, v in run] == [
    ('scanned', 2),
    ('scanned', 6),
    ('doubled', 12),
    ('doubled', 24),
    ('doubled', 48),
    ('doubled', 96),
    ('high', -96),
  ]
  assert run.retval == f(jnp.float32(1)) == -96


def test_the_second_run_compiles_nothing():
  f, params = toy.MODELS['jitted']
  forward = mechjax.iterate(f, 'resid_post', eagerly=True)
  zero = jnp.zeros((2, toy.D))
  toy.finish(forward(params, toy.X))
  with compilations() as seen:
    for layer, _, _ in (run := forward(params, toy.X)):
      if layer == 2:
        run.modified_value = zero
  assert seen.count == 0
  assert run.retval.shape == (2, toy.D)


def test_the_body_and_other_code_are_not_run_eagerly():
  f, params = toy.MODELS['jitted']
  for *_, value in mechjax.iterate(f, eagerly=True)(params, toy.X):
    assert not jax.config.jax_disable_jit
    traced = []
    jax.jit(lambda v, t=traced: t.append(isinstance(v, jax.core.Tracer)))(value)
    assert traced == [True]
    inner = mechjax.iterate(f, 'mlp_out')(params, toy.X)
    close(toy.finish(inner), f(params, toy.X))


def test_under_grad_it_is_differentiated():
  def loss(x, scale):
    for _, name, value in (run := mechjax.iterate(undecided_by_shape, eagerly=True)(x)):
      if name == 'first':
        run.modified_value = value * scale
    return run.retval.sum()

  def undecided_by_shape(x):
    return sow(jnp.sin(x), name='first') * 2

  x = jnp.array([0.2, 0.4])
  close(jax.grad(loss)(x, 3.0), 6 * jnp.cos(x))
  close(jax.jit(jax.grad(loss))(x, 3.0), 6 * jnp.cos(x))
  close(jax.vmap(loss, (0, None))(x[:, None], 3.0), 6 * jnp.sin(x))


def test_what_is_traced_even_so_is_refused_and_nothing_is_cached():
  f, params = toy.MODELS['checkpointed']
  with pytest.raises(RunError, match=r'mlp_post\.0 lies in code that JAX traces'):
    toy.finish(mechjax.iterate(f, eagerly=True)(params, toy.X))
  close(toy.finish(mechjax.iterate(f)(params, toy.X)), f(params, toy.X))


def test_a_conditional_sow_is_visited_only_where_its_predicate_holds():
  def f(x):
    return harvest.sow_cond(x * 2, x > 0, name='h') + 1

  def looped(x):
    seen = 0
    for _, _, value in (run := mechjax.iterate(f, sites='h', eagerly=True)(x)):
      seen += 1
      run.modified_value = value * 10
    return float(run.retval), seen

  assert looped(jnp.float32(3)) == (61, 1)
  assert looped(jnp.float32(-3)) == (-5, 0)
