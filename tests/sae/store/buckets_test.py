"""Batches from any position, on any host: each activation at most once per epoch, and the same order every time."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest

from mechjax.sae import SAEError
from mechjax.sae.store import Harvester, Share, Stored, Streamed, batches, plan, write
from tests.sae.store import toys

CONTEXTS = toys.contexts(n=40)
N = int(CONTEXTS.count_kept().sum())
BUCKET, ROWS = 12, 4


class Numbers(Harvester):
  """A source whose activations are their own numbers, [n, 1], so that each can be identified."""

  @property
  def widths(self):
    return {'x': 1}

  def rows(self, numbers, skip, n):
    counts = CONTEXTS.count_kept()
    ends = np.cumsum(counts)
    ids = np.concatenate([np.arange(ends[c] - counts[c], ends[c]) for c in numbers])
    return {'x': ids[skip : skip + n, None].astype(np.float32)}


NUMBERS = Numbers(toys.scanned, None, ['x'], CONTEXTS)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  directory = tmp_path_factory.mktemp('acts') / 'acts'
  write(directory, NUMBERS, plan(NUMBERS, shard_rows=BUCKET // 2, model='numbers'))
  return Stored.open(directory, shards_per_bucket=2)


@pytest.fixture(params=['stored', 'streamed'])
def source(request):
  if request.param == 'streamed':
    return Streamed(NUMBERS, BUCKET)
  return request.getfixturevalue('stored')


def taken(source, n, **where):
  """The first n batches: positions, and the numbers [n, rows]."""
  kinds = {'rows': ROWS, 'seed': 0} | where
  items = list(itertools.islice(batches(source, **kinds), n))
  return [position for position, _ in items], np.array([b['x'][:, 0] for _, b in items])


@pytest.mark.parametrize('hosts', [1, 2, 3])
def test_an_epoch_has_every_activation_at_most_once_over_all_hosts(source, hosts):
  turns = source.per_epoch // hosts
  n = turns * BUCKET // ROWS
  shares = [Share(host, hosts) for host in range(hosts)]
  epochs = [taken(source, 2 * n, share=share)[1].reshape(2, -1) for share in shares]
  for epoch in range(2):
    seen = np.concatenate([e[epoch] for e in epochs])
    assert len(seen) == hosts * turns * BUCKET == len({*seen.tolist()})
    assert {*seen.tolist()} <= {*range(N)}
  assert (epochs[0][0] != epochs[0][1]).any()


@pytest.mark.parametrize('hosts', [1, 2, 3])
def test_batches_from_a_position_are_those_that_follow_it(source, hosts):
  per_epoch = source.per_epoch // hosts * BUCKET // ROWS
  total = 2 * per_epoch + 2
  share = Share(hosts - 1, hosts)
  positions, everything = taken(source, total, share=share)
  assert positions == list(range(1, total + 1))
  for start in {0, 1, 2, 3, per_epoch - 1, per_epoch, per_epoch + 4, total - 1}:
    after, found = taken(source, total - start, share=share, position=start)
    assert after == positions[start:]
    np.testing.assert_array_equal(found, everything[start:])


def test_a_batch_mixes_its_bucket_and_other_seeds_mix_it_otherwise(source):
  (_, one), (_, other) = (taken(source, 3, seed=seed) for seed in (0, 1))
  assert sorted(one.ravel()) == sorted(other.ravel())
  assert (one != other).any()
  assert (np.diff(one.ravel()) != 1).any()


@pytest.mark.parametrize('which', ['stored', 'streamed'])
def test_another_seed_of_a_source_is_another_order_of_buckets(which, stored):
  if which == 'stored':
    make = lambda seed: dataclasses.replace(stored, seed=seed)  # noqa: E731
  else:
    make = lambda seed: Streamed(NUMBERS, BUCKET, seed)  # noqa: E731
  found = [make(seed).bucket(0)['x'] for seed in (0, 0, 1)]
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0] != found[2]).any()


def test_streamed_and_harvested_activations_are_the_same_numbers():
  harvester = Harvester(toys.scanned, toys.params(), ['resid_post.2'], CONTEXTS, batch=8)
  values = toys.kept(CONTEXTS, toys.by_hand(toys.params(), CONTEXTS.file, 2))
  _, found = taken(Streamed(NUMBERS, 16), 4)
  real = itertools.islice(batches(Streamed(harvester, 16), rows=ROWS, seed=0), 4)
  for ids, (_, batch) in zip(found.astype(int), real):
    np.testing.assert_allclose(batch['resid_post.2'], values[ids], atol=1e-5)


def test_whoever_stops_taking_batches_leaves_no_thread_behind(source):
  before = threading.active_count()
  some = batches(source, rows=ROWS, seed=0)
  next(some)
  some.close()
  assert threading.active_count() == before


def test_buckets_that_cannot_be_had_are_refused(source):
  with pytest.raises(SAEError, match=r'12 activations are not a multiple of 5(.|\n)*buckets of 10'):
    taken(source, 1, rows=5)
  with pytest.raises(SAEError, match=r'not a multiple of 24(.|\n)*buckets of 24'):
    taken(source, 1, rows=24)
  with pytest.raises(SAEError, match=f'{source.per_epoch} buckets for 100 hosts'):
    taken(source, 1, share=Share(0, 100))
  with pytest.raises(SAEError, match='bucket_rows=0'):
    Streamed(NUMBERS, 0)
  with pytest.raises(SAEError, match=f'the contexts have {N}'):
    Streamed(NUMBERS, N + 1)
  for host, hosts in ((-1, 2), (2, 2), (0, 0)):
    with pytest.raises(SAEError, match=f'Share.index={host}'):
      Share(host, hosts)
