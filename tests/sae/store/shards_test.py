"""Activations that are read equal those that were harvested, whatever happened to the directory in between."""

import collections
import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from mechjax.sae import SAEError
from mechjax.sae.store import Harvester, Share, Stored, plan, write
from mechjax.sae.store.order import Order
from tests.sae.store import toys

FLOAT16 = pytest.param('float16', marks=pytest.mark.float16, id='float16')

CONTEXTS = toys.contexts(n=30)
SITES = ['resid_post.2', 'z.0']
HARVESTER = Harvester(toys.scanned, toys.params(), SITES, CONTEXTS, batch=8)
ROWS = 10
ABOUT = plan(HARVESTER, shard_rows=ROWS, model='toy')


def wanted(harvester=HARVESTER, metadata=ABOUT):
  """Expected content of a directory, by one call of the harvester."""
  order = Order.of(CONTEXTS.count_kept(), metadata.seed, 0)
  return harvester.rows(order.contexts, 0, metadata.rows)


def everything(directory):
  stored = Stored.open(directory)
  parts = [stored.shard(n) for n in range(stored.metadata.shards)]
  return {site: np.concatenate([p[site] for p in parts]) for site in stored.widths}


def equal(one, other):
  assert {*one} == {*other}
  for site in one:
    assert one[site].dtype == other[site].dtype
    np.testing.assert_array_equal(one[site], other[site])


def snapshot(directory):
  """Bytes and times of all files."""
  files = (p for p in directory.rglob('*') if p.is_file())
  return {
    str(p.relative_to(directory)): (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino)
    for p in files
  }


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp('acts') / 'acts'
  write(directory, HARVESTER, ABOUT)
  return directory


@pytest.fixture
def copy(written, tmp_path):
  shutil.copytree(written, tmp_path / 'copy')
  return tmp_path / 'copy'


# --- values that are read are those that were harvested ---------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', FLOAT16])
def test_what_is_read_is_what_was_harvested(tmp_path, dtype):
  harvester = dataclasses.replace(HARVESTER, dtype=jnp.dtype(dtype))
  metadata = plan(harvester, shard_rows=ROWS, model='toy', seed=3)
  write(tmp_path / 'acts', harvester, metadata)
  equal(everything(tmp_path / 'acts'), wanted(harvester, metadata))
  written_files = snapshot(tmp_path / 'acts')
  write(tmp_path / 'acts', harvester, metadata)
  assert snapshot(tmp_path / 'acts') == written_files


def test_the_plan_has_full_shards_only_and_knows_their_size():
  total = int(CONTEXTS.count_kept().sum())
  assert (ABOUT.rows, ABOUT.shards) == (total // ROWS * ROWS, total // ROWS)
  assert ABOUT.shard_bytes == ROWS * (toys.D + toys.N * toys.H) * 4
  assert plan(HARVESTER, shard_rows=ROWS, model='toy', max_rows=25).rows == 20
  for wrong in ({'shard_rows': total + 1}, {'shard_rows': 0}, {'shard_rows': 5, 'max_rows': 4}):
    with pytest.raises(SAEError, match='do not fill a shard'):
      plan(HARVESTER, model='toy', **wrong)


@pytest.mark.parametrize('per_bucket', [1, 2, 3])
def test_a_bucket_is_some_whole_shards_and_an_epoch_has_each_shard_at_most_once(
  written, per_bucket
):
  stored = Stored.open(written, shards_per_bucket=per_bucket, seed=5)
  shards = [stored.shard(n)['z.0'].tobytes() for n in range(ABOUT.shards)]
  for epoch in range(2):
    numbers = range(epoch * stored.per_epoch, (epoch + 1) * stored.per_epoch)
    parts = [np.split(stored.bucket(n)['z.0'], per_bucket) for n in numbers]
    found = collections.Counter(part.tobytes() for bucket in parts for part in bucket)
    assert found.total() == stored.per_epoch * per_bucket
    assert not found - collections.Counter(shards)


def test_anything_that_reads_zarr_reads_it(written):
  for site, want in wanted().items():
    spec = {'driver': 'zarr3', 'kvstore': {'driver': 'file', 'path': str(written / site)}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), want)
    metadata = json.loads((written / site / 'zarr.json').read_text())
    assert metadata['shape'] == list(want.shape)
    raw = np.fromfile(written / site / 'c' / '1' / '0', '<f4').reshape(ROWS, -1)
    np.testing.assert_array_equal(raw, want[ROWS : 2 * ROWS])


def test_hosts_write_their_own_shards_into_one_directory(tmp_path):
  directory = tmp_path / 'acts'
  for host in (2, 0, 1):
    with pytest.raises(SAEError):
      Stored.open(directory)
    write(directory, HARVESTER, ABOUT, share=Share(host, 3))
  equal(everything(directory), wanted())


def test_progress_counts_up_from_what_is_there(copy):
  (copy / 'checked' / '1.json').unlink()
  (copy / 'checked' / '4.json').unlink()
  calls, n = [], ABOUT.shards
  write(copy, HARVESTER, ABOUT, progress=lambda done, total: calls.append((done, total)))
  assert calls == [(n - 2, n), (n - 1, n), (n, n)]


# --- damage is detected and repaired ----------------------------------------------------------------------


def half(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path):
  path.write_bytes(path.read_bytes() + b'x')


def flipped(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 4
  path.write_bytes(data)


def emptied(path):
  path.write_bytes(b'')


CHUNK, RECORD = 'z.0/c/3/0', 'checked/3.json'
DAMAGES = {
  'half a chunk': (CHUNK, half),
  'no bytes in a chunk': (CHUNK, emptied),
  'a longer chunk': (CHUNK, longer),
  'a flipped bit': (CHUNK, flipped),
  'no chunk': (CHUNK, lambda path: path.unlink()),
  'half a record': (RECORD, half),
  'an empty record': (RECORD, emptied),
  'a record of nothing': (RECORD, lambda path: path.write_text('{}')),
  'a record of another kind': (RECORD, lambda path: path.write_text('[1]')),
  'a record that is not text': (RECORD, lambda path: path.write_bytes(b'\xff\xfe')),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_shards_are_refused_by_the_reader_and_repaired_by_the_writer(copy, damage):
  name, spoil = DAMAGES[damage]
  before = snapshot(copy)
  spoil(copy / name)
  stored = Stored.open(copy)
  stored.shard(2)
  with pytest.raises(
    SAEError, match=r'shard 3 of .*z\.0 differs from what was written(.|\n)*writer again'
  ):
    stored.shard(3)
  with pytest.raises(SAEError, match='shard 3'):
    dataclasses.replace(stored, shards_per_bucket=ABOUT.shards).bucket(0)
  write(copy, HARVESTER, ABOUT)
  equal(everything(copy), wanted())
  after = snapshot(copy)
  assert {n: data for n, (data, *_) in after.items()} == {n: d for n, (d, *_) in before.items()}
  touched = {n for n in after if after[n] != before[n]}
  assert name in touched <= {f'{site}/c/3/0' for site in SITES} | {RECORD}


def test_a_directory_that_is_not_finished_is_refused_by_the_reader(copy):
  (copy / 'checked' / '5.json').unlink()
  with pytest.raises(SAEError, match=f'1 of {ABOUT.shards} shards are not(.|\n)*number 5'):
    Stored.open(copy)


def test_a_path_may_have_dots(tmp_path, monkeypatch):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  for path in ('../acts', './acts'):
    write(path, HARVESTER, ABOUT)
    equal(everything(path), wanted())
  assert {p.name for p in tmp_path.iterdir()} == {'here', 'acts'}


@pytest.mark.parametrize('metadata', [None, '', '{"rows": 3}', '[]'])
def test_a_directory_without_a_description_is_refused_by_the_reader(copy, metadata):
  (copy / 'about.json').unlink() if metadata is None else (copy / 'about.json').write_text(metadata)
  with pytest.raises(SAEError, match='holds no activations'):
    Stored.open(copy)


@pytest.mark.parametrize('n', [0, -1, ABOUT.shards + 1])
def test_buckets_of_no_shards_or_of_too_many_are_refused(written, n):
  with pytest.raises(SAEError, match=f'buckets of {n} shards'):
    Stored.open(written, shards_per_bucket=n)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'other',
  [
    {'model': 'another'},
    {'seed': 1},
    {'contexts': 'other tokens'},
    {'shard_rows': ROWS // 2},
    {'rows': ABOUT.rows - ROWS},
    {'dtype': 'float16'},
    {'widths': {'resid_post.1': toys.D}},
  ],
)
def test_other_activations_are_refused_and_nothing_is_changed(copy, other):
  before = snapshot(copy)
  (name,) = other
  with pytest.raises(SAEError, match=f'holds other activations: {name}: found'):
    write(copy, HARVESTER, dataclasses.replace(ABOUT, **other))
  assert snapshot(copy) == before


def test_too_little_room_is_found_before_anything_is_written(monkeypatch, tmp_path):
  room = collections.namedtuple('room', 'free')(100_000_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: room if path.exists() else 1 / 0)
  with pytest.raises(SAEError, match=r'the disk has 0\.10 GB left'):
    write(tmp_path / 'not' / 'yet', HARVESTER, ABOUT)
  assert not list(tmp_path.iterdir())


def test_what_is_there_already_needs_no_room(monkeypatch, copy):
  room = collections.namedtuple('room', 'free')((1 << 28) + ABOUT.shard_bytes)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: room)
  flipped(copy / CHUNK)
  write(copy, HARVESTER, ABOUT)
  flipped(copy / CHUNK)
  (copy / 'checked' / '1.json').unlink()
  with pytest.raises(SAEError, match='2 shards need'):
    write(copy, HARVESTER, ABOUT)


def test_an_error_of_the_model_stops_the_writer_and_it_goes_on_from_there(tmp_path):
  class Broken(Harvester):
    def rows(self, numbers, skip, n):
      if list(numbers) == list(self.bad):
        raise ZeroDivisionError('the model')
      return super().rows(numbers, skip, n)

  broken = Broken(toys.scanned, toys.params(), SITES, CONTEXTS, batch=8)
  span, _ = Order.of(CONTEXTS.count_kept(), 0, 0).span(2 * ROWS, 3 * ROWS)
  object.__setattr__(broken, 'bad', span)
  with pytest.raises(ZeroDivisionError):
    write(tmp_path / 'acts', broken, ABOUT)
  assert {p.stem for p in (tmp_path / 'acts' / 'checked').iterdir()} == {'0', '1'}
  write(tmp_path / 'acts', HARVESTER, ABOUT)
  equal(everything(tmp_path / 'acts'), wanted())
