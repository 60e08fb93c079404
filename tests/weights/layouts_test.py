"""Lines of a table against the NumPy they stand for, and writing against reading."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.weights import huggingface_tables, layouts, llama_cpp
from mechjax.weights.layouts import TensorLine

D, N, K, H, F, V = 6, 4, 2, 8, 10, 12
AXES = {
  'D': (lambda w: w, (D,), (D,)),
  'F D -> D F': (lambda w: w.T, (F, D), (D, F)),
  '(N H) D -> D N H': (lambda w: w.T.reshape(D, N, H), (N * H, D), (D, N, H)),
  'D (N H) -> N H D': (lambda w: w.T.reshape(N, H, D), (D, N * H), (N, H, D)),
  '(N H) D -> N H D': (lambda w: w.reshape(N, H, D), (N * H, D), (N, H, D)),
  '(N H) -> N H': (lambda b: b.reshape(N, H), (N * H,), (N, H)),
  'D (1/3 N H) -> D N H': (lambda w: np.split(w, 3, 1)[1].reshape(D, N, H), (D, 3 * N * H), (D, N, H)),
  '(N 2/3 H) D -> D N H': (
    lambda w: np.split(w.reshape(N, 3 * H, D), 3, 1)[2].transpose(2, 0, 1),
    (N * 3 * H, D),
    (D, N, H),
  ),
  '(N 0/3 H) -> N H': (lambda b: np.split(b.reshape(N, 3 * H), 3, 1)[0], (N * 3 * H,), (N, H)),
}  # fmt: skip
TABLES = {'gguf llama': llama_cpp.LLAMA, 'gguf gemma3': llama_cpp.GEMMA3}
TABLES |= huggingface_tables.TABLES


def numbered(shape) -> np.ndarray:
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize('axes', AXES)
def test_a_line_is_the_numpy_it_stands_for(axes):
  expected, in_file, shape = AXES[axes]
  line = TensorLine('leaf', 'tensor', axes)
  assert layouts.file_shape(line, shape) == in_file
  tensor = numbered(in_file)
  np.testing.assert_array_equal(layouts.to_parameter(line, tensor, shape), expected(tensor))


def test_rotary_pairs_come_apart_into_halves():
  """Row 2j + s of a head in the file is row j + s * H/2 of the parameter."""
  line = TensorLine('q', 'attn_q', '(N J 2) D -> D N (2 J)')
  tensor = numbered((N * H, D))
  found = layouts.to_parameter(line, tensor, (D, N, H))
  for head in range(N):
    for j in range(H // 2):
      for s in range(2):
        np.testing.assert_array_equal(found[:, head, j + s * H // 2], tensor[head * H + 2 * j + s])


@given(data=st.data())
def test_writing_every_line_that_shares_a_tensor_gives_the_tensor_back(data):
  table = TABLES[data.draw(st.sampled_from(sorted(TABLES)))]
  name = data.draw(st.sampled_from(sorted({line.name for line in table.lines})))
  sizes = {letter: data.draw(st.integers(1, 4)) for letter in 'DNKFVP'}
  sizes['H'] = 2 * data.draw(st.integers(1, 3))
  shared = [line for line in table.lines if line.name == name]
  shapes = [parameter_shape(line, sizes) for line in shared]
  tensor = numbered(layouts.file_shape(shared[0], shapes[0]))
  again = np.full_like(tensor, np.nan)
  for line, shape in zip(shared, shapes):
    assert layouts.file_shape(line, shape) == tensor.shape
    parameter = layouts.to_parameter(line, tensor, shape)
    assert parameter.shape == shape
    layouts.place(line, parameter + line.plus, again)
  np.testing.assert_array_equal(again, tensor)


def parameter_shape(line, sizes) -> tuple[int, ...]:
  right = line.axes.split('->')[-1].replace('(2 J)', 'H')
  return tuple(sizes[letter] for letter in right.split())


@pytest.mark.parametrize('name', TABLES)
def test_no_table_has_a_parameter_twice(name):
  leaves = [line.leaf for line in TABLES[name].lines]
  assert sorted(set(leaves)) == sorted(leaves)


def test_rows_can_be_read_alone_where_the_first_axis_stands_alone():
  axes = {'V D': 0, 'V D -> D V': 1, 'D (N H) -> N H D': 2, '(N H) D -> D N H': None, 'D': 0}
  assert {a: layouts.row_axis(TensorLine('', '', a)) for a in axes} == axes
