"""Defects of Oryx 0.2.9, each as a test that its behaviour would fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import HarvestError, SiteError

TAG = 'test'


def sow(x, name, mode='strict'):
  return harvest.sow(x, tag=TAG, name=name, mode=mode)


def test_clobber_and_sow_cond_in_one_scan_keep_their_own_modes():
  def f(x):
    def body(c, i):
      c = sow(c + 1.0, 'last', 'clobber')
      harvest.sow_cond(c * 10, i == 1, tag=TAG, name='second')
      return c, None

    return jax.lax.scan(body, x, jnp.arange(4))[0]

  assert harvest.reap(f, tag=TAG)(0.0) == {'last': 4.0, 'second': 20.0}


def test_an_unknown_plant_is_an_error():
  with pytest.raises(SiteError, match="no site matches 'typo'"):
    harvest.plant(lambda x: sow(x, 'x'), tag=TAG)({'typo': 1.0}, 2.0)


@pytest.mark.parametrize('value', [jnp.zeros(3), jnp.zeros(2, jnp.int32)], ids=['shape', 'dtype'])
def test_a_plant_of_the_wrong_shape_or_dtype_is_an_error(value):
  with pytest.raises(HarvestError, match=r'shape|dtype'):
    harvest.plant(lambda x: sow(x, 'x'), tag=TAG)({'x': value}, jnp.ones(2))


def test_an_allowlist_works_under_nest():
  f = harvest.nest(lambda x: sow(sow(x, 'x') + 1, 'y'), scope='inner')
  assert harvest.reap(f, tag=TAG, allowlist=['x'])(1.0) == {'inner': {'x': 1.0}}


def test_nest_keeps_the_predicates_of_sow_cond():
  def f(x, on):
    harvest.sow_cond(x, on, tag=TAG, name='x')
    return x

  nested = harvest.nest(f, scope='inner')
  assert harvest.reap(nested, tag=TAG)(3.0, jnp.array(False)) == {'inner': {'x': 0.0}}
  assert harvest.reap(nested, tag=TAG)(3.0, jnp.array(True)) == {'inner': {'x': 3.0}}


def test_nest_with_append_works_in_a_scan():
  step = harvest.nest(lambda c: sow(c * 2, 'x', 'append'), scope='inner')
  f = lambda x: jax.lax.scan(lambda c, _: (step(c), None), x, None, length=3)[0]  # noqa: E731
  np.testing.assert_allclose(harvest.reap(f, tag=TAG)(1.0)['inner']['x'], [2.0, 4.0, 8.0])


def test_a_pytree_is_sown_inside_cond():
  def f(p, x):
    return jax.lax.cond(
      p, lambda x: sow({'a': x, 'b': -x}, 'x'), lambda x: sow({'a': 2 * x, 'b': x}, 'x'), x
    )

  assert harvest.reap(f, tag=TAG)(jnp.array(True), 1.0) == {'x': {'a': 1.0, 'b': -1.0}}
  assert harvest.reap(f, tag=TAG)(jnp.array(False), 1.0) == {'x': {'a': 2.0, 'b': 1.0}}


def test_clobber_in_a_scan_of_no_iterations_gives_zeros():
  f = lambda x: jax.lax.scan(lambda c, _: (sow(c + 1, 'x', 'clobber'), None), x, None, length=0)[0]  # noqa: E731
  assert harvest.reap(f, tag=TAG)(5.0) == {'x': 0.0}


def test_a_sow_in_a_while_condition_is_an_error():
  f = lambda x: jax.lax.while_loop(lambda c: sow(c, 'x', 'clobber') < 3, lambda c: c + 1, x)  # noqa: E731
  with pytest.raises(HarvestError, match='condition of a while loop'):
    harvest.reap(f, tag=TAG)(0.0)


def test_reaping_a_vmapped_cond_takes_each_lane_from_its_own_branch():
  def f(p, x):
    return jax.lax.cond(
      p, lambda x: sow(x, 'x', 'clobber'), lambda x: sow(x * 10, 'x', 'clobber'), x
    )

  got = harvest.reap(jax.vmap(f), tag=TAG)(jnp.array([True, False]), jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(got['x'], [1.0, 20.0])


def test_planting_twice_through_one_jitted_function_leaves_a_plain_run_alone():
  f = jax.jit(lambda x: sow(x, 'x') * 2)
  plant = harvest.plant(f, tag=TAG)
  assert plant({'x': 5.0}, 1.0) == 10.0
  assert plant({'x': 6.0}, 1.0) == 12.0
  assert f(1.0) == 2.0


def test_reaping_a_vmapped_while_keeps_the_last_value_of_each_lane():
  def f(n):
    return jax.lax.while_loop(
      lambda c: c[0] < n, lambda c: (c[0] + 1, sow(c[0] * 10, 'x', 'clobber')), (0, -1)
    )

  got = harvest.reap(jax.vmap(f), tag=TAG)(jnp.array([1, 3, 0]))
  np.testing.assert_array_equal(got['x'], [0, 20, 0])
