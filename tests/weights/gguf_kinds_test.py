"""Every supported quantisation, against the package's quantiser or the format's own loops.

The package can undo the K kinds but not make them, and comparing it with itself would prove
nothing, so they are decoded here once more, number by number, as the format describes them.
"""

import gguf
import ml_dtypes
import numpy as np
import pytest

from mechjax.weights import gguf as ours

SIMPLE = ['F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0']
ROWS, WIDTH = 5, 512


def sub_scales(packed, j):
  """Scale and minimum, 6 bits each, of sub-block j of 8."""
  if j < 4:
    return packed[j] & 63, packed[j + 4] & 63
  low, high = packed[j + 4] & 15, packed[j + 4] >> 4
  return low | (packed[j - 4] >> 6) << 4, high | (packed[j] >> 6) << 4


def half(two_bytes) -> float:
  return float(np.frombuffer(bytes(two_bytes), '<f2')[0])


def q4_k(b):
  d, dmin, packed, qs = half(b[0:2]), half(b[2:4]), b[4:16], b[16:144]
  out = []
  for j in range(8):
    scale, minimum = sub_scales(packed, j)
    nibbles = [q >> 4 if j % 2 else q & 15 for q in qs[32 * (j // 2) :][:32]]
    out += [d * scale * q - dmin * minimum for q in nibbles]
  return out


def q5_k(b):
  d, dmin, packed, high, qs = half(b[0:2]), half(b[2:4]), b[4:16], b[16:48], b[48:176]
  out = []
  for j in range(8):
    scale, minimum = sub_scales(packed, j)
    for i, q in enumerate(qs[32 * (j // 2) :][:32]):
      five = (q >> 4 if j % 2 else q & 15) + 16 * (high[i] >> j & 1)
      out.append(d * scale * five - dmin * minimum)
  return out


def q6_k(b):
  low, high, d = b[:128], b[128:192], half(b[208:210])
  scales = np.frombuffer(bytes(b[192:208]), np.int8)
  out = [0.0] * 256
  for at in range(256):
    n, quarter, i = at // 128, at % 128 // 32, at % 32
    nibble = low[64 * n + 32 * (quarter % 2) + i] >> 4 * (quarter // 2) & 15
    q = (nibble | (high[32 * n + i] >> 2 * quarter & 3) << 4) - 32
    out[at] = d * int(scales[at // 16]) * q
  return out


DECODED = {'Q4_K': (q4_k, (0, 2)), 'Q5_K': (q5_k, (0, 2)), 'Q6_K': (q6_k, (208,))}


def random_blocks(kind: str) -> np.ndarray:
  """Rows of random bytes whose scales, float16, are of a size that weights have."""
  _, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
  rng = np.random.default_rng(n_bytes)
  blocks = rng.integers(0, 256, (ROWS * WIDTH // 256, n_bytes), np.uint8)
  for at in DECODED[kind][1]:
    scale = rng.uniform(1e-3, 2e-2, len(blocks)).astype('<f2')
    blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
  return blocks


@pytest.fixture(scope='module')
def weights():
  return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture(scope='module')
def file(tmp_path_factory, weights):
  path = tmp_path_factory.mktemp('kinds') / 'kinds.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  for kind in SIMPLE:
    raw_dtype = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(kind, gguf.quants.quantize(weights, raw_dtype), raw_dtype=raw_dtype)
  for kind in DECODED:
    rows = random_blocks(kind).reshape(ROWS, -1)
    writer.add_tensor(kind, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
  writer.add_tensor('vector', weights[0])
  writer.add_tensor('F64', weights.astype(np.float64) / 3)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return ours.GGUFFile(path)


@pytest.mark.parametrize('kind', SIMPLE)
def test_simple_kinds_equal_what_the_package_quantised(file, weights, kind):
  raw_dtype = gguf.GGMLQuantizationType[kind]
  expected = gguf.quants.dequantize(gguf.quants.quantize(weights, raw_dtype), raw_dtype)
  np.testing.assert_array_equal(file.read(kind), expected.reshape(ROWS, WIDTH))


def test_half_precision_kinds_equal_a_cast(file, weights):
  np.testing.assert_array_equal(file.read('F16'), weights.astype(np.float16).astype(np.float32))
  expected = weights.astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(file.read('BF16'), expected)


def test_double_precision_is_kept(file, weights):
  assert file.tensors['F64'].kind == 'F64'
  np.testing.assert_array_equal(file.read('F64'), weights.astype(np.float64) / 3)
  np.testing.assert_array_equal(file.read('F64', slice(1, 3)), weights[1:3].astype(np.float64) / 3)


@pytest.mark.parametrize('kind', DECODED)
def test_k_kinds_equal_the_loops_of_the_format(file, kind):
  expected = [
    number for block in random_blocks(kind) for number in DECODED[kind][0](block.tolist())
  ]
  found = file.read(kind)
  np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-5, atol=1e-6)
  assert found.std() > 0.1


@pytest.mark.parametrize('chunk', [1, 300, 1 << 20])
@pytest.mark.parametrize('kind', [*SIMPLE, *DECODED])
def test_pieces_and_rows_make_the_whole(file, kind, chunk, monkeypatch):
  whole = file.read(kind)
  monkeypatch.setattr(ours, '_CHUNK', chunk)
  np.testing.assert_array_equal(file.read(kind), whole)
  np.testing.assert_array_equal(file.read(kind, slice(1, 4)), whole[1:4])
  np.testing.assert_array_equal(file.read(kind, slice(4, 9)), whole[4:9])


def test_part_of_a_vector_is_that_part(file, weights):
  np.testing.assert_array_equal(file.read('vector', slice(3, 9)), weights[0, 3:9])
