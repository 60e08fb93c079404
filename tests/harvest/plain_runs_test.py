"""Free when unused, and without traces: a plain run before or after any harvest is the untagged program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks.timing import optimised_hlo
from mechjax import harvest
from mechjax.errors import HarvestError

X = jnp.linspace(-1.0, 1.0, 5)


def jitted(tag):
  return jax.jit(lambda x: tag(jnp.sin(x)) * 2)


def scanned(tag):
  return lambda x: jax.lax.scan(lambda c, _: (tag(jnp.sin(c)), c), x, None, length=3)


def checkpointed(tag):
  return jax.checkpoint(lambda x: tag(jnp.sin(x)) * 2)


def branched(tag):
  return lambda x: jax.lax.cond(x[0] > 0, lambda x: tag(x) * 2, lambda x: tag(-x) * 3, x)


CASES = pytest.mark.parametrize('make', [jitted, scanned, checkpointed, branched])


@CASES
def test_a_plain_run_returns_what_it_returned_before(make):
  f = make(lambda x: harvest.sow(x, name='a'))
  before = jax.tree.map(np.asarray, f(X))
  for value in (0.0, 1.0, 2.0):
    name = 'a.1' if make is scanned else 'a'
    planted = harvest.plant(f)({name: jnp.full(5, value)}, X)
    assert not np.allclose(jax.tree.leaves(planted)[0], jax.tree.leaves(before)[0])
    for _, _, v in (run := mechjax.iterate(f)(X)):
      run.modified_value = v * 0
    traced = jax.jit(lambda x: _zeroed(f, x))(X)
    np.testing.assert_allclose(
      jax.tree.leaves(run.retval)[0], jax.tree.leaves(traced)[0], atol=1e-6
    )
    if make is not checkpointed:  # which an eager run refuses
      for _, _, v in (run := mechjax.iterate(f, eagerly=True)(X)):
        run.modified_value = v * 0 + value
        del v
    harvest.reap(f)(X)
    jax.tree.map(np.testing.assert_array_equal, f(X), before)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(f)(X), jax.jit(make(lambda x: x))(X))


def _zeroed(f, x):
  for _, _, v in (run := mechjax.iterate(f)(x)):
    run.modified_value = v * 0
    del v
  return run.retval


@CASES
def test_outside_a_harvest_there_is_no_equation_and_the_same_program(make):
  text = lambda tag, form: optimised_hlo(form(make(tag)), X)  # noqa: E731
  tagged, plain = lambda x: harvest.sow(x, name='a'), lambda x: x
  assert 'sow' not in str(jax.make_jaxpr(make(tagged))(X))
  forms = (
    lambda f: f,
    lambda f: jax.grad(lambda x: sum(a.sum() for a in jax.tree.leaves(f(x)))),
    lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])),
  )
  for form in forms:
    assert text(tagged, form) == text(plain, form)


@pytest.mark.parametrize(
  'f',
  [
    lambda x: jax.lax.custom_linear_solve(
      lambda y: harvest.sow(2.0 * y, name='a'), x, lambda _, b: b / 2.0
    ),
    lambda x: jax.lax.while_loop(
      lambda c: harvest.sow(c, name='a', mode='clobber').sum() < 9, lambda c: c + 1.0, x
    ),
  ],
  ids=['custom_linear_solve', 'while condition'],
)
def test_a_sow_that_no_rule_can_reach_is_an_error_that_names_it(f):
  with pytest.raises(HarvestError, match="'a'"):
    harvest.reap(f, sites='a')(X)


def test_custom_rules_stay_in_force_under_a_read_and_are_void_under_a_write():
  @jax.custom_vjp
  def straight_through(x):
    return harvest.sow(jnp.round(x), name='a')

  straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (g * 7,))
  f = lambda x: straight_through(x).sum()  # noqa: E731
  read = jax.grad(lambda x: harvest.call_and_reap(f)(x)[0])
  np.testing.assert_array_equal(read(X), 7.0)
  write = jax.grad(lambda x: harvest.plant(f)({'a': lambda v: v + 1}, x))
  np.testing.assert_array_equal(write(X), 0.0)


@pytest.mark.parametrize('policy', [None, jax.checkpoint_policies.everything_saveable])
@pytest.mark.parametrize('prevent_cse', [True, False])
def test_checkpoints_of_every_kind(policy, prevent_cse):
  f = jax.checkpoint(
    lambda x: jnp.sin(harvest.sow(jnp.sin(x), name='a')).sum(),
    policy=policy,
    prevent_cse=prevent_cse,
  )
  np.testing.assert_allclose(harvest.reap(f)(X)['a'], jnp.sin(X), rtol=1e-6)
  doubled = jax.grad(lambda x: harvest.plant(f)({'a': lambda v: v * 2}, x))(X)
  np.testing.assert_allclose(
    doubled, jnp.cos(2 * jnp.sin(X)) * 2 * jnp.cos(X), rtol=1e-5, atol=1e-6
  )


def test_a_sow_that_the_derivative_does_not_need_is_read_all_the_same():
  def f(x):
    jax.jit(lambda y: harvest.sow(y * 2, name='unused'))(x)
    return (x**2).sum()

  found = harvest.reap(jax.grad(f), tag=harvest.TAG)(X)
  np.testing.assert_allclose(found['unused'], X * 2)
