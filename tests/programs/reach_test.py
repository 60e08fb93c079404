"""A change without effect is refused: values planted, or gradients taken, where the result of a sow is thrown away."""

import jax
import jax.numpy as jnp
import pytest

import mechjax
from mechjax import harvest, sites
from mechjax.errors import HarvestError
from tests.harvest.toy import close

X = jnp.linspace(-1.0, 1.0, 4)


def thrown_away(x):
  harvest.sow(x, name='a')
  return x


def used_elsewhere(x):
  """A sown value that leads to another value, which is thrown away as well."""
  jnp.sin(harvest.sow(x, name='a')).sum()
  return x


def in_a_scan(x):
  return jax.lax.scan(lambda x, w: (thrown_away(x) * w, None), x, X)[0]


def carried_for_nothing(x):
  """A carry that feeds only itself."""
  body = lambda c, w: ((c[0] * w, harvest.sow(c[1] + w, name='a')), None)  # noqa: E731
  return jax.lax.scan(body, (x, x), X)[0][0]


def in_a_branch(x):
  return jax.lax.cond(x.sum() > -9, thrown_away, thrown_away, x)


def in_a_while(x):
  body = lambda s: (s[0] + 1, in_clobber(s[1]))  # noqa: E731
  return jax.lax.while_loop(lambda s: s[0] < 2, body, (0, x))[1]


def in_clobber(x):
  harvest.sow(x, name='a', mode='clobber')
  return x * 2


def unrolled(x):
  for i in range(2):
    with sites.layer(i):
      x = jax.checkpoint(thrown_away)(x) * 2
  return x


DEAD = {
  'thrown away': thrown_away,
  'thrown away in jit': jax.jit(thrown_away),
  'used elsewhere': used_elsewhere,
  'in a scan': in_a_scan,
  'carried for nothing': carried_for_nothing,
  'in a branch': in_a_branch,
  'in a while': in_a_while,
  'unrolled': unrolled,
}
MODELS = pytest.mark.parametrize('f', DEAD.values(), ids=DEAD)


@MODELS
def test_what_is_thrown_away_can_be_read_and_nothing_else(f):
  assert harvest.reap(f, sites='a')(X)
  with pytest.raises(HarvestError, match='cannot be planted: nothing that the function') as error:
    harvest.plant(f)({'a': lambda v: v + 1}, X)
  assert 'reach_test.py' in error.value.where
  if f is not in_a_while:  # it has no derivative
    with pytest.raises(HarvestError, match='cannot be differentiated'):
      harvest.value_and_grad_at(lambda x: f(x).sum(), 'a')(X)
    with pytest.raises(HarvestError, match='cannot be differentiated'):
      _walk_back(f, X)
  if f is carried_for_nothing:  # where all layers are shown, a change at one is seen at the next
    return
  for run in (lambda x: _loop(f, x), jax.jit(lambda x: _loop(f, x))):
    with pytest.raises(HarvestError, match='cannot be modified'):
      run(X)


def _loop(f, x):
  for _, _, value in (run := mechjax.iterate(f)(x)):
    run.modified_value = value + 1
  return run.retval


def _walk_back(f, x):
  for _ in (run := mechjax.iterate(f)(x)):
    pass
  return list(run.backward(jnp.sum))


def alive_in_a_scan(x):
  """The carry that is sown reaches the result one iteration later."""
  body = lambda c, w: ((c[1], harvest.sow(c[0] * w, name='a')), None)  # noqa: E731
  return jax.lax.scan(body, (x, x), X)[0][0]


def printed(x):
  jax.debug.callback(lambda _: None, harvest.sow(x, name='a'))
  return x


@pytest.mark.parametrize('f', [alive_in_a_scan, printed])
def test_what_acts_in_a_roundabout_way_can_be_planted(f):
  harvest.plant(f)({'a': lambda v: v + 1}, X)


def test_a_value_acts_where_another_site_that_is_read_depends_on_it():
  def f(x):
    harvest.sow(harvest.sow(x, name='a') * 2, name='b')
    return x

  close(harvest.harvest(f, sites='b')({'a': X + 1}, X)[1]['b'], 2 * (X + 1))
  for _, name, value in (run := mechjax.iterate(f)(X)):
    if name == 'a':
      run.modified_value = value + 1
    else:
      close(value, 2 * (X + 1))
  for plants, wanted in (({'a': X}, 'a'), ({'b': X}, 'b')):
    with pytest.raises(HarvestError, match='cannot be planted'):
      harvest.harvest(f, sites=wanted)(plants, X)


def test_a_derivative_that_needs_no_value_is_still_changed_by_planting():
  """The gradient of a linear function does not hold the value, but a planted value has no gradient."""
  gradient = jax.grad(lambda x: (3 * harvest.sow(2 * x, name='a')).sum())
  close(gradient(X), [6.0] * 4)
  close(harvest.plant(gradient)({'a': X}, X), [0.0] * 4)
