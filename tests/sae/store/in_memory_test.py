"""Activations from memory: every row as often as it has to be, in buckets of one size, and only finite numbers."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from mechjax.sae import SAEError
from mechjax.sae.store import Generated, InMemory, batches

D = 3


def make(n, seed=0):
  return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def take(source, rows, n, position=0):
  """The next n batches, with their positions."""
  return [*itertools.islice(batches(source, rows=rows, seed=1, position=position), n)]


def sort(x):
  return x[np.lexsort(x.T)]


def test_an_epoch_of_arrays_has_every_row_once_and_both_sites_have_the_same_tokens():
  x = make(24)
  source = InMemory({'a': x, 'b': 2 * x}, batch=8)
  assert (source.bucket_rows, source.per_epoch, source.widths) == (24, 1, {'a': D, 'b': D})
  first, second = ([b for _, b in take(source, 8, 6)][i : i + 3] for i in (0, 3))
  for epoch in (first, second):
    np.testing.assert_array_equal(sort(np.concatenate([b['a'] for b in epoch])), sort(x))
    for batch in epoch:
      np.testing.assert_array_equal(2 * batch['a'], batch['b'])
  assert not np.array_equal(first[0]['a'], second[0]['a'])  # another order
  assert np.shares_memory(source.bucket(0)['a'], x)  # no copy


def test_rows_that_do_not_fill_a_batch_are_left_out_of_one_epoch_and_not_of_the_next():
  x = make(20)
  source = InMemory({'a': x}, batch=8)
  np.testing.assert_array_equal(source.bucket(0)['a'], x[:16])
  np.testing.assert_array_equal(source.bucket(1)['a'], x[4:])


def test_batches_of_arrays_resume_at_any_position():
  source = InMemory({'a': make(24)}, batch=8)
  whole, later = take(source, 8, 5), take(source, 8, 2, position=3)
  for (n, a), (m, b) in zip(whole[3:], later, strict=True):
    assert n == m
    np.testing.assert_array_equal(a['a'], b['a'])


def blocks(sizes, seed=0):
  """Blocks of some sizes, cut from one array, again and again."""
  x = make(sum(sizes), seed)
  return [{'a': part} for part in np.split(x, np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize('sizes', [(5, 1, 4), (10,), (1,) * 10, (3, 7)])
def test_blocks_are_joined_and_cut_into_buckets_in_their_order(sizes):
  x = make(10)
  source = Generated(lambda: blocks(sizes), 4)
  endless = np.concatenate([x] * 4)  # a generator that ends starts again
  for number in (0, 1, 2, 5, 5, 3, 0, 6):
    expected = endless[4 * number : 4 * number + 4]
    np.testing.assert_array_equal(source.bucket(number)['a'], expected)
  assert source.widths == {'a': D}


def test_a_generator_may_fill_one_array_again_and_again():
  def refilled():
    kept = np.empty((3, D), np.float32)
    for block in blocks((3, 3, 3)):
      kept[:] = block['a']
      yield {'a': kept}

  expected = Generated(lambda: blocks((3, 3, 3)), 8).bucket(0)['a']
  np.testing.assert_array_equal(Generated(refilled, 8).bucket(0)['a'], expected)


def test_batches_of_a_generator_resume_and_an_iterator_runs_once():
  source = Generated(lambda: blocks((6, 10)), 8)
  whole, later = take(source, 4, 5), take(Generated(lambda: blocks((6, 10)), 8), 4, 2, position=3)
  np.testing.assert_array_equal(whole[3][1]['a'], later[0][1]['a'])
  np.testing.assert_array_equal(whole[4][1]['a'], later[1][1]['a'])
  once = Generated(iter(blocks((6, 10))), 8)
  for (_, a), (_, b) in zip(whole[:4], take(once, 4, 4), strict=True):
    np.testing.assert_array_equal(a['a'], b['a'])
  with pytest.raises(SAEError, match='has ended, or is needed from its start again'):
    once.bucket(0)
  with pytest.raises(SAEError, match='has ended'):
    Generated(iter(blocks((6,))), 8)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({}, 'is not activations by site'),
    (make(4), 'is not activations by site'),
    ({'a': np.zeros((4, D), int)}, r'int64 \[4, 3\]'),
    ({'a': np.zeros((4, D))}, r'float64 \[4, 3\]'),
    ({'a': make(4)[0]}, r'float32 \[3\]'),
    ({'a': make(0)}, r'float32 \[0, 3\]'),
    ({'a': make(4), 'b': make(5)}, 'different numbers of tokens'),
    ({'a': np.where(np.eye(4, D) > 0, np.nan, 1).astype(np.float32)}, 'not finite'),
    ({'a': np.full((4, D), np.inf, ml_dtypes.bfloat16)}, 'not finite'),
    ({'a': make(3)}, '3 activations for batches of 4'),
    ({'a': np.ma.array(make(4), mask=np.eye(4, D) > 0)}, 'masked array'),
  ],
)
def test_arrays_that_are_no_activations_are_refused(arrays, message):
  with pytest.raises(SAEError, match=message):
    InMemory(arrays, batch=4)


def test_blocks_that_do_not_fit_each_other_are_refused():
  with pytest.raises(SAEError, match='without a block'):
    Generated(list, 4)
  with pytest.raises(SAEError, match=r'width 2.*after blocks of .*width 3'):
    Generated(lambda: [{'a': make(2)}, {'a': make(2)[:, :2]}], 4)
  with pytest.raises(SAEError, match='not finite'):
    Generated(lambda: [{'a': make(2)}, {'a': make(2) * np.float32(np.nan)}], 4)
  with pytest.raises(SAEError, match='bucket_rows=0'):
    Generated(lambda: [{'a': make(2)}], 0)


def test_small_dtypes_are_kept_and_different_data_have_another_digest():
  x = make(8).astype(ml_dtypes.bfloat16)
  source = InMemory({'a': x}, batch=4)
  assert source.bucket(0)['a'].dtype == ml_dtypes.bfloat16
  assert source.digest == InMemory({'a': x.copy()}, batch=4).digest
  for other in ({'a': x[::-1]}, {'b': x}, {'a': x.astype(np.float32)}, {'a': x[:, ::-1]}):
    assert InMemory(other, batch=4).digest != source.digest
