"""Reader and writer against the safetensors library, and damage of every kind."""

import json
import struct
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mechjax.errors import WeightsError
from mechjax.weights import safetensors as reader
from mechjax.weights import safetensors_writing as writing
from mechjax.weights import shards
from mechjax.weights.safetensors import SafetensorsFile

ARRAYS = {
  'f32': np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
  'bf16': np.arange(7, dtype=np.float32).astype(ml_dtypes.bfloat16),
  'f16': np.ones((2, 2, 2), np.float16),
  'f64': np.array(3.5),
  'i64': np.array([[-1, 2]]),
  'u8': np.arange(3, dtype=np.uint8),
  'bool': np.array([True, False]),
  'empty': np.zeros((0, 4), np.float32),
}


def file_of(path, header, data=b'') -> SafetensorsFile:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)
  return SafetensorsFile(path)


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def test_what_the_library_writes_is_read(tmp_path):
  path = tmp_path / 'library.safetensors'
  safetensors.numpy.save_file(ARRAYS, path, metadata={'made': 'by hand'})
  file = SafetensorsFile(path)
  assert file.metadata == {'made': 'by hand'}
  assert set(file.tensors) == set(ARRAYS)
  for name, array in ARRAYS.items():
    found = file.read(name)
    assert (found.dtype, found.shape, file.tensors[name].shape) == (array.dtype, *2 * [array.shape])
    np.testing.assert_array_equal(found, array)


def test_what_is_written_is_read_by_the_library(tmp_path):
  path = tmp_path / 'ours.safetensors'
  writing.save(path, {**ARRAYS, 'jax': jnp.ones((2, 3), jnp.bfloat16)})
  found = safetensors.numpy.load_file(path)
  assert found['jax'].dtype == ml_dtypes.bfloat16
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_rows_are_those_of_the_whole(tmp_path):
  path = tmp_path / 'ours.safetensors'
  writing.save(path, ARRAYS)
  file = SafetensorsFile(path)
  np.testing.assert_array_equal(file.read('f32', slice(1, 3)), ARRAYS['f32'][1:3])
  with pytest.raises(ValueError, match='read-only'):
    file.read('f32')[0, 0] = 1


def test_a_failed_write_leaves_neither_file_nor_scratch(tmp_path):
  path = tmp_path / 'kept.safetensors'
  writing.save(path, {'a': ARRAYS['f32']})
  before = path.read_bytes()
  with pytest.raises(WeightsError, match=r"do not support the dtypes of \{'b': 'complex64'\}"):
    writing.save(path, {'a': ARRAYS['f16'], 'b': np.ones(2, np.complex64)})
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_directory_never_gets_its_name(tmp_path):
  def fails():
    raise KeyboardInterrupt

  entries = {'a': writing.TensorEntry((2,), np.dtype('f4'), lambda: np.ones(2, np.float32))}
  entries['b'] = writing.TensorEntry((2,), np.dtype('f4'), fails)
  with pytest.raises(KeyboardInterrupt), writing.new_directory(tmp_path / 'new') as scratch:
    writing.write_checkpoint(scratch, entries, 10**9)
  assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_is_not_written_over(tmp_path):
  (tmp_path / 'mine').touch()
  with (
    pytest.raises(WeightsError, match='exists already'),
    writing.new_directory(tmp_path),
  ):
    raise AssertionError
  with (
    pytest.raises(WeightsError, match='mine is a file'),
    writing.new_directory(tmp_path / 'mine' / 'inside'),
  ):
    raise AssertionError


DAMAGED = {
  'a dtype that is not known': ({'x': entry('F12')}, b'8' * 8, "'x' has dtype 'F12'"),
  'a negative size': ({'x': entry(shape=(-2, -1))}, b'8' * 8, r"'x' has shape \[-2, -1\]"),
  'a size that is not an integer': ({'x': entry(shape=(2.0,))}, b'8' * 8, r"'x' has shape \[2.0\]"),
  'a true size': ({'x': entry(shape=(True, 2))}, b'8' * 8, "'x' has shape"),
  'bytes that do not fit the shape': (
    {'x': entry(shape=(3,))},
    b'8' * 8,
    "'x' .* takes 12 bytes, not the bytes between offsets 0 and 8",
  ),
  'an end before the beginning': ({'x': entry(offsets=(8, 0))}, b'8' * 8, 'takes 8 bytes, not'),
  'three offsets': ({'x': entry(offsets=(0, 8, 9))}, b'8' * 8, 'data_offsets'),
  'a gap': ({'x': entry(offsets=(4, 12))}, b'8' * 12, "'x' begins at offset"),
  'an overlap': ({'x': entry(), 'y': entry(offsets=(4, 12))}, b'8' * 12, "'y' begins at offset"),
  'more bytes than tensors': ({'x': entry()}, b'8' * 9, 'the last tensor ends'),
  'fewer bytes than tensors': ({'x': entry()}, b'8' * 7, r"truncated: tensor 'x' .* 8 bytes"),
  'a tensor that is a number': ({'x': 3}, b'', "'x' is described by 3"),
  'a key too many': ({'x': {**entry(), 'y': 1}}, b'8' * 8, "'x' is described by"),
  'metadata that are numbers': ({'__metadata__': {'a': 1}}, b'', '__metadata__ is not'),
  'no object': ([], b'', 'the header is list, not an object'),
  'no JSON': (b'{"x"', b'', 'the header is not valid JSON'),
  'no UTF-8': (b'\xff\xfe\xfd', b'', 'the header is not valid JSON'),
  'a name twice': (b'{"x": 1, "x": 2}', b'', "'x' occurs 2 times"),
  'NaN': (b'{"x": NaN}', b'', 'NaN is not a JSON number'),
  'deep brackets': (b'[' * 100_000, b'', 'the header is not valid JSON'),
  'a number of many digits': (b'{"x": ' + b'9' * 9999 + b'}', b'', 'the header is not valid JSON'),
}


@pytest.mark.parametrize('what', DAMAGED)
def test_damage_is_named(tmp_path, what):
  header, data, message = DAMAGED[what]
  with pytest.raises(WeightsError, match=message) as e:
    file_of(tmp_path / 'damaged.safetensors', header, data)
  assert str(tmp_path / 'damaged.safetensors') in str(e.value)


@pytest.mark.parametrize(('length', 'message'), [(1 << 60, 'allows 100000000'), (900, 'truncated')])
def test_a_header_longer_than_the_file_allocates_nothing(tmp_path, length, message):
  path = tmp_path / 'damaged.safetensors'
  path.write_bytes(struct.pack('<Q', length) + b'{}')
  tracemalloc.start()
  with pytest.raises(WeightsError, match=message):
    SafetensorsFile(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1 << 20


@pytest.mark.parametrize('n', [0, 7])
def test_a_file_without_a_length_is_truncated(tmp_path, n):
  path = tmp_path / 'short.safetensors'
  path.write_bytes(b'\0' * n)
  with pytest.raises(WeightsError, match='truncated: the length of the header takes 8 bytes'):
    SafetensorsFile(path)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'last.ckpt', 'model.pth'])
def test_a_pickle_is_refused_with_its_reason_and_the_way_out(tmp_path, name):
  (tmp_path / name).write_bytes(b'\x80\x04N.')
  for path in (tmp_path / name, tmp_path):
    with pytest.raises(WeightsError, match='is a pickle, which mechjax never reads') as e:
      shards.open_checkpoint(path)
    assert 'runs any program' in e.value.cause
    assert 'save_pretrained' in e.value.hint


def sharded(directory, where):
  for file in sorted(set(where.values())):
    arrays = {t: ARRAYS[t] for t, f in where.items() if f == file}
    safetensors.numpy.save_file(arrays, directory / file)
  index = {'metadata': {'total_size': 1}, 'weight_map': where}
  (directory / shards.INDEX).write_text(json.dumps(index))
  return where


WHERE = {'f32': 'a.safetensors', 'f16': 'b.safetensors', 'bf16': 'a.safetensors'}


def test_several_files_behave_as_one(tmp_path):
  sharded(tmp_path, WHERE)
  file = shards.open_checkpoint(tmp_path)
  assert set(file.tensors) == set(WHERE)
  for name in WHERE:
    np.testing.assert_array_equal(file.read(name), ARRAYS[name])
  np.testing.assert_array_equal(file.read('f32', slice(2, 3)), ARRAYS['f32'][2:3])
  with pytest.raises(WeightsError, match=r"(?s)unknown tensor 'f3'.*'f32'"):
    file.read('f3')


def test_files_that_are_not_there_are_all_named(tmp_path):
  sharded(tmp_path, WHERE)
  (tmp_path / 'a.safetensors').unlink()
  (tmp_path / 'b.safetensors').unlink()
  with pytest.raises(WeightsError, match=r"2 files that do not exist: \['a.*', 'b.*'\]"):
    shards.open_checkpoint(tmp_path)


def test_an_index_that_disagrees_with_its_files_names_the_tensors(tmp_path):
  sharded(tmp_path, WHERE)
  wrong = {'f32': 'b.safetensors', 'f16': 'b.safetensors', 'new': 'a.safetensors'}
  (tmp_path / shards.INDEX).write_text(json.dumps({'weight_map': wrong}))
  with pytest.raises(WeightsError, match=r"do not agree about \['bf16', 'f32', 'new'\]"):
    shards.open_checkpoint(tmp_path)


@pytest.mark.parametrize('name', ['../a.safetensors', '/etc/a.safetensors', 'a.bin', 3, None])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, name):
  (tmp_path / shards.INDEX).write_text(json.dumps({'weight_map': {'x': name}}))
  with pytest.raises(WeightsError, match='weight_map does not map each tensor to a file'):
    shards.open_checkpoint(tmp_path)


def test_a_directory_without_a_checkpoint_lists_what_is_there(tmp_path):
  for name in ('b', 'a'):
    writing.save(tmp_path / f'{name}.safetensors', {'x': ARRAYS['f32']})
  with pytest.raises(WeightsError, match=r"(?s)no checkpoint in .*\['a.safetensors', 'b.safet"):
    shards.open_checkpoint(tmp_path)
  (tmp_path / 'b.safetensors').unlink()
  assert list(shards.open_checkpoint(tmp_path).tensors) == ['x']


def test_every_dtype_has_its_size():
  sizes = {
    kind: int(kind.strip('FIUB').split('_')[0] or 0) // 8 or 1
    for kind in reader.DTYPES
    if kind != 'BOOL'
  }
  sizes |= {'BOOL': 1}
  assert {kind: dtype.itemsize for kind, dtype in reader.DTYPES.items()} == sizes
