"""Inputs of planted functions and values of reads, against slices and loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import errors, harvest
from mechjax.generate import columns, functions
from mechjax.generate.columns import Extent
from mechjax.generate.functions import Function, Staged

B, W, N, D = 2, 6, 3, 4
RESID = np.random.default_rng(0).standard_normal((B, W, D)).astype(np.float32)
SCORES = np.random.default_rng(1).standard_normal((B, N, W, W)).astype(np.float32)


def staged(fn, name, x, widths):
  return Staged.of(Function(fn, columns.axes_of(name), x, name), widths)


@pytest.mark.parametrize(
  ('name', 'x', 'fn'),
  [
    ('resid_post', RESID, lambda x: x - x.mean(1, keepdims=True) + x.shape[1]),
    ('v', RESID[:, :, None], lambda v: v.at[:, -1].set(0)),
    ('attn_scores', SCORES, lambda s: s.at[..., -1].set(s.shape[-2])),
  ],
)
@pytest.mark.parametrize('lengths', [[4, 4], [3, 5], [6, 6]])
def test_a_function_of_texts_sees_their_columns_and_changes_no_others(name, x, fn, lengths):
  planted = staged(fn, name, x, range(1, W + 1))
  alike = len({*lengths}) == 1
  found = jax.jit(lambda n: functions.map_texts(n, 1, alike, n, planted)(jnp.asarray(x)))(
    jnp.asarray(lengths, jnp.int32)
  )
  for row, n in enumerate(lengths):
    own = (slice(None), slice(n), slice(n)) if name == 'attn_scores' else (slice(n),)
    expected = x[row].copy()
    expected[own] = fn(jnp.asarray(x)[row : row + 1][(slice(None), *own)])[0]
    np.testing.assert_allclose(found[row], expected, rtol=1e-6)


def test_a_function_that_fails_at_other_lengths_is_only_asked_at_those_that_occur():
  def fn(x):
    if x.shape[1] != 4:
      raise ValueError(f'{x.shape[1]} positions')
    return 2 * x

  function = Function(fn, columns.axes_of('resid_post'), RESID, 'resid_post')
  planted = Staged.of(function, range(1, W + 1))
  found = functions.map_texts(
    jnp.full(B, 4, jnp.int32), 1, True, jnp.full(B, 4, jnp.int32), planted
  )(jnp.asarray(RESID))
  np.testing.assert_array_equal(found[:, :4], 2 * RESID[:, :4])
  with pytest.raises(ValueError, match='5 positions'):
    function.stage(5)


def test_staged_functions_are_one_program_where_they_differ_in_arrays_alone():
  def key(fn):
    return jax.tree.structure(staged(fn, 'resid_post', RESID, [W, 1]))

  def steer(v):
    return lambda x: x + v

  v, w = jnp.ones(D), jnp.arange(D, dtype=jnp.float32)
  assert key(steer(v)) == key(steer(w)) == key(steer(np.zeros(D, np.float32)))
  assert key(steer(2.0)) != key(steer(3.0))
  assert key(lambda x: x + v * w) != key(lambda x: x + v * v)
  (one,) = jax.tree.leaves(staged(steer(w), 'resid_post', RESID, [W, 1]))
  np.testing.assert_array_equal(one, w)


def test_reads_are_aligned_on_the_right_without_padding_and_nan_before_shorter_rows():
  run = harvest.reap(lambda x, s: (_sown(x, 'resid_post'), _sown(s, 'attn_scores')), sites='*')
  acts = run(jnp.asarray(RESID), jnp.asarray(SCORES))
  first, end = np.array([1, 2]), np.array([5, 5])
  cut = columns.real_columns(acts, Extent(first, end, 4), Extent(first, end, 4))
  assert cut['resid_post'].shape == (B, 4, D)
  assert cut['attn_scores'].shape == (B, N, 4, 4)
  left = columns.real_columns(
    acts, Extent(0 * end, end - first, 4), Extent(0 * end, end - first, 4)
  )
  for row, (a, b) in enumerate(zip(first, end)):
    n = b - a
    for found, begin in ((cut, a), (left, 0)):
      own = slice(begin, begin + n)
      x, s = (np.asarray(found[site])[row] for site in ('resid_post', 'attn_scores'))
      np.testing.assert_array_equal(x[-n:], RESID[row, own])
      np.testing.assert_array_equal(s[:, -n:, -n:], SCORES[row, :, own, own])
      assert np.isnan(x).sum() == (4 - n) * D
      assert np.isnan(s).sum() == N * (16 - n * n)


def _sown(x, name):
  return harvest.sow(x, name=name)


def test_a_pattern_that_selects_several_names_has_a_function_for_each():
  def f(x):
    with_layers = _sown(x, 'resid_post')
    return _sown(with_layers[:, None], 'attn_scores')

  infos = harvest.sites_of(f, RESID)
  found = functions.functions(functions.resolve({'*': jnp.zeros_like}, infos))
  assert {k: v.axes for k, v in found.items()} == {
    'resid_post': ('B', 'T', 'D'),
    'attn_scores': ('B', 'N', 'T', 'S'),
  }
  columns.check(infos[:1], B, W)
  with pytest.raises(
    errors.SiteError,
    match=r'attn_scores has shape \(2, 1, 6, 4\) and not \[B, N, T, S\] in a step of 2 rows of 5',
  ):
    columns.check(infos[1:], B, 5)


def test_a_site_whose_axes_are_not_known_is_refused():
  infos = harvest.sites_of(lambda x: _sown(x, 'mine'), RESID)
  with pytest.raises(errors.SiteError, match="the axes of 'mine' are not known"):
    functions.resolve({'mine': jnp.zeros_like}, infos)
