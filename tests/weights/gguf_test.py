"""The reader agrees with the format's own package, and finds all damage."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import WeightsError
from mechjax.weights.gguf import GGUFFile

KINDS = ['F32', 'F16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0']


def weights_of(kind: str) -> np.ndarray:
  return np.random.default_rng(len(kind)).normal(size=(6, 64)).astype(np.float32)


def quantised(kind: str) -> np.ndarray:
  return gguf.quants.quantize(weights_of(kind), gguf.GGMLQuantizationType[kind])


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp('gguf') / 'tiny.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_uint32('some.count', 7)
  writer.add_float32('some.ratio', 0.5)
  writer.add_bool('some.flag', True)
  writer.add_string('some.text', 'naïve Ġ')
  writer.add_array('some.words', ['a', 'ß', ''])
  writer.add_array('some.numbers', [3, 1, 2])
  for kind in KINDS:
    writer.add_tensor(f'{kind}.weight', quantised(kind), raw_dtype=gguf.GGMLQuantizationType[kind])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope='module')
def content(path):
  return path.read_bytes()


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
  return tmp_path_factory.mktemp('damaged') / 'damaged.gguf'


def opened(scratch, content: bytes) -> GGUFFile:
  scratch.write_bytes(content)
  return GGUFFile(scratch)


@pytest.mark.parametrize('kind', KINDS)
def test_tensors_equal_what_the_gguf_package_dequantises(path, kind):
  expected = gguf.quants.dequantize(quantised(kind), gguf.GGMLQuantizationType[kind])
  found = GGUFFile(path).read(f'{kind}.weight')
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected.reshape(6, 64))
  np.testing.assert_allclose(found, weights_of(kind), atol=0.3)


def test_offsets_and_metadata_equal_what_the_gguf_package_reads(path):
  ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
  assert {t.name: (t.data_offset, t.n_bytes) for t in theirs.tensors} == {
    name: (info.offset, info.n_bytes) for name, info in ours.tensors.items()
  }
  for key, field in theirs.fields.items():
    if not key.startswith('GGUF.'):
      assert np.array_equal(ours.metadata[key], field.contents()), key


@given(data=st.data())
def test_a_file_cut_anywhere_names_the_file_and_an_offset_inside_it(scratch, content, data):
  end = GGUFFile_end(content)
  n = data.draw(st.integers(0, end - 1))
  with pytest.raises(WeightsError, match=r'truncated.* takes \d+ bytes at offset \d+') as e:
    opened(scratch, content[:n])
  assert str(scratch) in str(e.value)
  assert f'has {n} bytes' in str(e.value)


def GGUFFile_end(content: bytes) -> int:
  """Offset of the end of the last tensor; the bytes after it are padding, which may be missing."""
  return content.rindex(quantised(KINDS[-1]).tobytes()) + quantised(KINDS[-1]).nbytes


@given(data=st.data())
def test_damage_in_the_header_never_gives_any_other_exception(scratch, content, data):
  header = content.index(quantised('F32').tobytes())
  damaged = bytearray(content)
  for at in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=3)):
    damaged[at] = data.draw(st.integers(0, 255))
  try:
    file = opened(scratch, bytes(damaged))
    for name in file.tensors:
      file.read(name)
  except WeightsError:
    pass


def test_a_wrong_magic_shows_what_is_there_instead(scratch, content):
  with pytest.raises(WeightsError, match=r"begins with b'PK\\x03\\x04', not b'GGUF'"):
    opened(scratch, b'PK\x03\x04' + content[4:])


@pytest.mark.parametrize(('version', 'cause'), [(9, 'newer'), (3 << 24, 'big-endian')])
def test_an_unknown_version_is_named_with_its_cause(scratch, content, version, cause):
  with pytest.raises(WeightsError, match=f'(?s)version {version};.*{cause}'):
    opened(scratch, content[:4] + struct.pack('<I', version) + content[8:])


def test_an_unknown_quantisation_names_tensor_number_and_offset(scratch, content):
  at = kind_offset(content, 'Q4_1.weight')
  damaged = content[:at] + struct.pack('<I', 211) + content[at + 4 :]
  message = f"(?s)'Q4_1.weight' has unknown quantisation 211.*offset {at}"
  with pytest.raises(WeightsError, match=message):
    opened(scratch, damaged)


def test_a_quantisation_that_cannot_be_undone_names_tensor_and_offset(scratch, content):
  at = kind_offset(content, 'F32.weight')
  file = opened(scratch, content[:at] + struct.pack('<I', 26) + content[at + 4 :])
  with pytest.raises(WeightsError, match=r"(?s)'F32.weight' has quantisation I32.*offset \d+"):
    file.read('F32.weight')


def kind_offset(content: bytes, name: str) -> int:
  return content.index(name.encode()) + len(name) + 4 + 2 * 8


def test_a_row_that_is_no_multiple_of_the_block_is_an_error(scratch, content):
  at = kind_offset(content, 'Q8_0.weight') - 16
  with pytest.raises(WeightsError, match=r'shape \(6, 63\).*blocks of 32'):
    opened(scratch, content[:at] + struct.pack('<Q', 63) + content[at + 8 :])


def test_a_tensor_without_elements_is_an_error(scratch, content):
  at = kind_offset(content, 'Q4_1.weight') - 16
  with pytest.raises(WeightsError, match=rf'(?s)shape \(6, 0\), which is empty.*offset {at}'):
    opened(scratch, content[:at] + struct.pack('<Q', 0) + content[at + 8 :])


def test_a_tensor_larger_than_the_file_is_refused_before_anything_is_allocated(scratch, content):
  at = kind_offset(content, 'F32.weight') - 8
  damaged = content[:at] + struct.pack('<Q', 1 << 50) + content[at + 8 :]
  tracemalloc.start()
  with pytest.raises(WeightsError, match=r"'F32.weight' .* takes 288230376151711744 bytes"):
    opened(scratch, damaged)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1 << 20


def test_a_missing_tensor_names_the_nearest(path):
  with pytest.raises(WeightsError, match=r"(?s)unknown tensor 'Q4_2.weight'.*Q4_1.weight"):
    GGUFFile(path).read('Q4_2.weight')


def test_missing_metadata_names_the_nearest(path):
  with pytest.raises(WeightsError, match=r"(?s)unknown metadata 'some.counts'.*some.count"):
    GGUFFile(path).value('some.counts')


def test_text_that_is_not_utf8_names_its_offset(scratch, content):
  at = content.index('naïve'.encode())
  with pytest.raises(WeightsError, match=f"'some.text' at offset {at - 8} is not UTF-8"):
    opened(scratch, content[:at] + b'\xff' + content[at + 1 :])


def test_the_same_key_or_tensor_twice_is_an_error(scratch, content):
  with pytest.raises(WeightsError, match=r"metadata 'some\.count' occurs twice"):
    opened(scratch, content.replace(b'some.ratio', b'some.count', 1))
  with pytest.raises(WeightsError, match=r"tensor 'Q4_0.weight' occurs twice"):
    opened(scratch, content.replace(b'Q4_1.weight', b'Q4_0.weight', 1))
