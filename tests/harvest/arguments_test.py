"""Arguments of a harvested function: data, static values, trees of both, and arguments that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import HarvestError, SiteError

X = np.linspace(-1.0, 1.0, 4, dtype=np.float32)


def sown(x):
  return harvest.sow(x, name='a')


class Config:
  """Hashable by identity."""

  scale = 3.0


class Unhashable:
  __hash__ = None


def f(x, n=1, *, scale=1.0, act=None, config=None, flag=False):
  x = sown(x * scale)
  for _ in range(n):
    x = x + 1.0
  x = x * (config.scale if config else 1.0)
  return getattr(jnp, act)(x) if act else (-x if flag is True else x)


@pytest.mark.parametrize(
  ('args', 'kwargs'),
  [
    ((X,), {}),
    ((jnp.asarray(X), 3), {}),
    ((X,), {'n': 2, 'scale': 2.0}),
    ((X,), {'scale': np.float32(2)}),
    ((X,), {'act': 'sin'}),
    ((X,), {'config': Config()}),
    ((1.5,), {}),
  ],
  ids=['numpy', 'positional', 'keywords', 'scalar', 'string', 'object', 'float'],
)
def test_arguments_are_passed_on(args, kwargs):
  out, acts = harvest.call_and_reap(f)(*args, **kwargs)
  np.testing.assert_allclose(out, f(*args, **kwargs), rtol=1e-6)
  np.testing.assert_allclose(acts['a'], args[0] * kwargs.get('scale', 1.0), rtol=1e-6)
  planted = harvest.plant(f)({'a': X if np.ndim(args[0]) else 2.0}, *args, **kwargs)
  want = f(X if np.ndim(args[0]) else 2.0, *args[1:], **{**kwargs, 'scale': 1.0})
  np.testing.assert_allclose(planted, want, rtol=1e-6)


def test_equal_static_values_of_different_types_are_different_programs():
  reaped = harvest.call_and_reap(f)
  assert reaped(2.0, flag=1)[0] == 3.0
  assert reaped(2.0, flag=True)[0] == -3.0


def test_values_of_one_type_share_a_program_and_others_do_not():
  staged = []

  def g(x, n):
    staged.append(n)
    return sown(x) * n

  reaped = harvest.reap(g)
  for x, n in ((X, 2), (X + 1, 2), (X, 3), (X[:2], 2), (X, 2)):
    np.testing.assert_array_equal(reaped(x, n)['a'], x)
  assert staged == [2, 3, 2]


@pytest.mark.parametrize(
  'bad',
  [Unhashable(), {1, 2}, {'deep': [Unhashable()]}, np.array(['text']), np.array([Config()])],
  ids=['object', 'set', 'in a tree', 'strings', 'array of objects'],
)
def test_what_is_neither_data_nor_hashable_is_an_error_that_names_its_type(bad):
  g = lambda x, bad: sown(x)  # noqa: E731
  leaf = jax.tree.leaves(bad)[0]
  for call in (harvest.reap(g), lambda *args: harvest.plant(g)({'a': X}, *args)):
    with pytest.raises(HarvestError, match=type(leaf).__name__) as error:
      call(X, bad)
    assert 'close over' in error.value.hint


def test_methods_partials_and_builtins_have_no_attribute_to_cache_on():
  class Model:
    def __call__(self, x):
      return sown(x * 2)

    forward = __call__

  model = Model()
  for g in (model, model.forward, jax.tree_util.Partial(model.forward), jax.jit(model)):
    np.testing.assert_array_equal(harvest.reap(g)(X)['a'], X * 2)
  with pytest.raises(SiteError, match='no sites at all'):
    harvest.reap(sum)([1.0, 2.0])


def test_trees_go_in_and_come_out():
  def g(batch):
    y = harvest.sow({'p': batch['x'] * 2, 'q': (batch['x'], batch['n'])}, name='tree')
    return {'sum': y['p'] + y['q'][0], 'n': y['q'][1]}

  batch = {'x': X, 'n': np.int32(3), 'none': None}
  out, acts = harvest.call_and_reap(g)(batch)
  np.testing.assert_allclose(out['sum'], X * 3)
  assert jax.tree.structure(acts['tree']) == jax.tree.structure({'p': 0, 'q': (0, 0)})
  out = harvest.plant(g)({'tree': {'p': X, 'q': (X, 7)}}, batch)
  np.testing.assert_allclose(out['sum'], X * 2)
  assert out['n'] == 7


@pytest.mark.parametrize(
  'given',
  [
    np.array([1, 2**32 + 1]),
    np.array([-(2**31) - 1]),
    np.array([2**32], np.uint64),
    np.int64(2**40),
  ],
)
def test_integers_that_jax_would_cut_are_refused_and_those_that_fit_are_not(given):
  calls = harvest.reap(sown, sites='a'), harvest.call_and_reap(sown, sites='a')
  for call in (*calls, lambda x: harvest.plant(sown)({'a': X}, x)):
    with pytest.raises(HarvestError, match=f'dtype {given.dtype} has .* truncate to u?int32'):
      call(given)
  fits = np.array([-(2**31), 2**31 - 1])
  np.testing.assert_array_equal(calls[0](fits)['a'], fits)
  fits = np.array([2**32 - 1], np.uint64)
  np.testing.assert_array_equal(calls[0](fits)['a'], fits)
