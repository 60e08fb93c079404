"""Files of random and of slightly wrong bytes give a WeightsError, quickly and without much memory.

Three readers, each with files that are right except for a few bytes, truncated, or written on purpose
with headers that promise more than the file has. The result is always a WeightsError or a tensor of
the size in the header.
"""

import contextlib
import json
import shutil
import struct
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechjax.errors import WeightsError
from mechjax.weights import orbax, shards
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.safetensors import SafetensorsFile

pytestmark = pytest.mark.slow

# Python's own bookkeeping for a few kilobytes of header.
ALLOWANCE = 4 << 20
LARGE = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


@contextlib.contextmanager
def little_memory(n_bytes):
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < ALLOWANCE + 100 * n_bytes
  finally:
    tracemalloc.stop()


def read_all(opened, path):
  """Reads every tensor of a file, or meets a WeightsError."""
  with contextlib.suppress(WeightsError):
    file = opened(path)
    for name, info in file.tensors.items():
      assert file.read(name).shape == info.shape
      if info.shape:
        assert file.read(name, slice(0, 1)).shape == (min(1, info.shape[0]), *info.shape[1:])


@st.composite
def damaged(draw, content: bytes):
  """The content with bytes changed, eight of them made a large number, or the end cut off."""
  found = bytearray(content)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(0, len(found) - 1)))
    match draw(st.sampled_from(['byte', 'number', 'cut', 'insert'])):
      case 'byte':
        found[at : at + 1] = bytes([draw(st.integers(0, 255))])
      case 'number':
        found[at : at + 8] = struct.pack('<Q', draw(LARGE))
      case 'cut':
        del found[at:]
      case 'insert':
        found[at:at] = draw(st.binary(max_size=9))
  return bytes(found)


def gguf_content(path) -> bytes:
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_array('some.words', ['a', 'b'])
  writer.add_array('some.numbers', [1, 2, 3])
  for kind in ('F32', 'F16', 'Q8_0', 'Q4_1'):
    raw_dtype = gguf.GGMLQuantizationType[kind]
    rows = gguf.quants.quantize(np.ones((2, 32), np.float32), raw_dtype)
    writer.add_tensor(kind, rows, raw_dtype=raw_dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path.read_bytes()


def safetensors_content(path) -> bytes:
  arrays = {'a': np.ones((2, 3), np.float32), 'b': np.ones(4, np.float16), 'c': np.zeros((0, 2))}
  safetensors.numpy.save_file(arrays, path, metadata={'x': 'y'})
  return path.read_bytes()


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
  directory = tmp_path_factory.mktemp('right')
  return {
    GGUFFile: gguf_content(directory / 'a.gguf'),
    SafetensorsFile: safetensors_content(directory / 'a.safetensors'),
  }


@settings(max_examples=400)
@pytest.mark.parametrize('opened', [GGUFFile, SafetensorsFile])
@given(data=st.data())
def test_damaged_files(contents, scratch, opened, data):
  path = scratch / 'damaged'
  path.write_bytes(data.draw(damaged(contents[opened])))
  with little_memory(path.stat().st_size):
    read_all(opened, path)


@settings(max_examples=100)
@pytest.mark.parametrize('opened', [GGUFFile, SafetensorsFile])
@given(content=st.binary(max_size=300))
def test_random_files(scratch, opened, content):
  path = scratch / 'random'
  for beginning in (b'', b'GGUF\x03\0\0\0', struct.pack('<Q', max(0, len(content) - 3))):
    path.write_bytes(beginning + content)
    with little_memory(path.stat().st_size):
      read_all(opened, path)


def string(text: bytes) -> bytes:
  return struct.pack('<Q', len(text)) + text


@settings(max_examples=200)
@given(
  n_dims=st.integers(0, 70) | st.just(2**32 - 1),
  size=LARGE | st.integers(1, 64),
  kind=st.integers(0, 45),
  offset=LARGE | st.integers(0, 64),
  key=st.tuples(st.integers(0, 13), LARGE | st.integers(0, 4), st.integers(0, 12)),
  tail=st.binary(max_size=200),
)
def test_gguf_headers_that_promise_much(scratch, n_dims, size, kind, offset, key, tail):
  pair = string(b'key') + struct.pack('<III', key[0], key[2], 0) + struct.pack('<Q', key[1])
  tensor = string(b'x') + struct.pack('<I', n_dims)
  tensor += struct.pack('<Q', size) * min(n_dims, 70) + struct.pack('<IQ', kind, offset)
  path = scratch / 'promises.gguf'
  for pairs in (b'', pair):
    path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 1, bool(pairs)) + pairs + tensor + tail)
    with little_memory(path.stat().st_size):
      read_all(GGUFFile, path)


def test_gguf_arrays_in_arrays_end_somewhere(scratch):
  path = scratch / 'nested.gguf'
  nested = struct.pack('<IQ', 9, 1) * 20_000
  path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + string(b'k') + b'\x09\0\0\0' + nested)
  with pytest.raises(WeightsError, match='nests arrays more than 8 deep'):
    GGUFFile(path)


def test_gguf_tensors_of_more_axes_than_an_array_can_have(scratch):
  path = scratch / 'axes.gguf'
  tensor = string(b'x') + struct.pack('<I', 65) + struct.pack('<Q', 1) * 65 + bytes(12)
  path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 1, 0) + tensor + bytes(64))
  with pytest.raises(WeightsError, match=r"'x' has 65 axes; the format has at most 4"):
    GGUFFile(path)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | LARGE,
  lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=4),
  max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
  {
    'dtype': st.sampled_from(['F32', 'BF16', 'F8_E4M3', 'I8', 'F4']) | JSON,
    'shape': st.lists(st.integers(0, 5) | LARGE, max_size=40) | JSON,
    'data_offsets': st.lists(st.integers(0, 40) | LARGE, min_size=2, max_size=2) | JSON,
  }
)


@settings(max_examples=300)
@given(
  header=st.dictionaries(st.sampled_from(['a', 'b', '__metadata__']), TENSOR | JSON) | JSON,
  data=st.binary(max_size=80),
)
def test_safetensors_headers_that_promise_much(scratch, header, data):
  text = json.dumps(header).encode()
  path = scratch / 'promises.safetensors'
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)
  with little_memory(path.stat().st_size):
    read_all(SafetensorsFile, path)


@settings(max_examples=150)
@given(index=JSON | st.fixed_dictionaries({'weight_map': JSON}))
def test_indices_of_every_kind(scratch, index):
  path = scratch / shards.INDEX
  path.write_text(json.dumps(index))
  with little_memory(path.stat().st_size):
    read_all(shards.open_checkpoint, path)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  directory = tmp_path_factory.mktemp('orbax') / 'right'
  orbax.write(directory, {'a': jnp.arange(64.0).reshape(8, 8), 'b': jnp.ones(3)}, {'x': 1})
  return directory


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_damaged_orbax_checkpoints(checkpoint, scratch, data):
  shapes = {'a': jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  shapes['b'] = jax.ShapeDtypeStruct((3,), jnp.float32)
  copy = scratch / 'checkpoint'
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(checkpoint, copy)
  files = sorted(p for p in copy.rglob('*') if p.is_file())
  path = data.draw(st.sampled_from(files))
  path.write_bytes(data.draw(damaged(path.read_bytes())))
  with little_memory(1 << 12):
    with contextlib.suppress(WeightsError):
      orbax.config(copy)
    with contextlib.suppress(WeightsError):
      found = orbax.read(copy, shapes)
      assert found['a'].shape == (8, 8)
