"""Stacking, casting and sharding against NumPy; the number of reads; the memory."""

import collections
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mechjax.errors import MechjaxError, WeightsError
from mechjax.weights import loading, matching
from mechjax.weights.layouts import Table, lines
from mechjax.weights.tensors import ALL, TensorInfo

L, D, N, H, V = 4, 8, 4, 2, 16
TABLE = Table(
  lines("""
    embed.tokens  embed.weight  V D
    layers.q      h.{}.q        (N H) D -> D N H
    layers.up     h.{}.up       F D -> D F
    layers.bias   h.{}.b        F
    layers.norm   h.{}.norm     D | -1
    unembed       head          V D -> D V
  """),
  aliases=(('embed.', 'model.embed.'), ('h.', 'model.h.')),
  copies=(('head', 'embed.weight'),),
  unused=('*.mask',),
)
SHAPES = {
  'embed': {'tokens': (V, D)},
  'layers': {'q': (L, D, N, H), 'up': (L, D, 2 * D), 'norm': (L, D)},
}


class Arrays:
  """A reader of arrays in memory, which counts what is asked of it."""

  path = Path('somewhere')

  def __init__(self, arrays):
    self.arrays, self.counts = arrays, collections.Counter()
    kinds = {'f': 'F32', 'V': 'BF16', 'i': 'I32'}
    self.tensors = {
      n: TensorInfo(n, a.shape, kinds[a.dtype.kind], 0, a.nbytes) for n, a in arrays.items()
    }

  def read(self, name, rows=ALL):
    found = self.arrays[name][rows]
    self.counts[name] += found.size
    return found


def model(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {'embed.weight': (V, D)}
  for i in range(L):
    shapes |= {f'h.{i}.q': (N * H, D), f'h.{i}.up': (2 * D, D), f'h.{i}.norm': (D,)}
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def shapes(dtype=jnp.float32, sharding=None, tree=SHAPES):
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding and sharding(shape)),
    tree,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def expected(arrays):
  per_layer = {
    'q': lambda i: arrays[f'h.{i}.q'].T.reshape(D, N, H),
    'up': lambda i: arrays[f'h.{i}.up'].T,
    'norm': lambda i: arrays[f'h.{i}.norm'].astype(np.float32) - 1,
  }
  layers = {name: np.stack([f(i) for i in range(L)]) for name, f in per_layer.items()}
  return {'embed': {'tokens': arrays['embed.weight']}, 'layers': layers}


def assert_tree(found, wanted, dtype=np.float32):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert (a.dtype, a.shape) == (dtype, b.shape)
    np.testing.assert_array_equal(np.asarray(a), b.astype(dtype))


@pytest.mark.parametrize('stored', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_layers_are_stacked_laid_out_and_cast(stored, dtype):
  arrays = model(stored)
  found = loading.load(Arrays(arrays), TABLE, shapes(dtype))
  assert_tree(found, expected(arrays), dtype)


@pytest.mark.parametrize('stored', [np.float64, np.float32, ml_dtypes.bfloat16])
def test_float64_parameters_are_what_the_file_has_to_the_last_bit(stored):
  arrays = model(stored)
  wanted = expected(arrays)
  norms = [arrays[f'h.{i}.norm'].astype(np.float64) - 1 for i in range(L)]
  wanted['layers']['norm'] = np.stack(norms)
  with jax.enable_x64(True):
    assert_tree(loading.load(Arrays(arrays), TABLE, shapes(jnp.float64)), wanted, np.float64)


@pytest.mark.parametrize('dtype', ['int8', 'bool', 'float64'])
def test_parameters_that_would_not_hold_the_numbers_of_the_file_are_refused(dtype):
  with pytest.raises(MechjaxError, match=f'dtype=.*{dtype}'):
    loading.load(Arrays(model()), TABLE, shapes(np.dtype(dtype)))


SPECS = {
  'replicated': lambda shape: (),
  'layers apart': lambda shape: ('a',) if shape[0] == L else (),
  'one axis': lambda shape: (None, 'b'),
  'two axes': lambda shape: (None, 'a', 'b') if len(shape) > 2 else ('a',),
  'both on one': lambda shape: (None, ('a', 'b')),
}


@pytest.mark.parametrize('piece', [1, 30, 1 << 22])
@pytest.mark.parametrize('name', SPECS)
def test_sharded_arrays_are_the_single_device_ones_and_each_number_is_read_once(
  name, piece, monkeypatch
):
  monkeypatch.setattr(loading, '_PIECE', piece)
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  arrays = model()
  reader = Arrays(arrays)

  def sharding(shape):
    return NamedSharding(mesh, PartitionSpec(*SPECS[name](shape)))

  wanted = shapes(sharding=sharding)
  found = loading.load(reader, TABLE, wanted)
  assert_tree(found, expected(arrays))
  assert reader.counts == {name: array.size for name, array in arrays.items()}
  for array, target in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert array.sharding == target.sharding


def test_a_host_reads_no_layer_that_it_does_not_hold():
  """A sharding over two of four layers' devices, as one host of several would see it."""

  class HalfHere(jax.sharding.SingleDeviceSharding):
    def addressable_devices_indices_map(self, shape):
      device = jax.devices()[0]
      return {device: (slice(0, 2), *[slice(None)] * (len(shape) - 1))}

  target = jax.ShapeDtypeStruct((L, D, N, H), jnp.float32, sharding=HalfHere(jax.devices()[0]))
  boxes = loading._devices(target)
  assert list(boxes) == [((0, 2), (0, D), (0, N), (0, H))]
  line = matching.select_lines(TABLE, {'layers.q': target})['layers.q']
  pieces = [box for i in range(L) for _, box in loading._pieces(line, target, i, 1)]
  assert sum(loading._intersect(box, next(iter(boxes))) is not None for box in pieces) == 2


def test_arrays_can_be_donated_and_shards_that_share_a_buffer_stay_whole():
  mesh = jax.make_mesh((8,), ('a',))
  arrays = model()
  found = loading.load(
    Arrays(arrays), TABLE, shapes(sharding=lambda _: NamedSharding(mesh, PartitionSpec()))
  )
  kept = loading.load(Arrays(arrays), TABLE, shapes())
  wanted = expected(arrays)
  doubled = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)(found)
  assert_tree(doubled, jax.tree.map(lambda x: x * 2, wanted))
  for array in jax.tree.leaves(doubled):
    for shard in array.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(array))
  assert_tree(kept, wanted)


def test_other_spellings_are_found():
  arrays = {f'model.{name}': array for name, array in model().items()}
  assert_tree(loading.load(Arrays(arrays), TABLE, shapes()), expected(model()))


def test_one_error_names_all_that_is_wrong():
  arrays = model()
  del arrays['embed.weight'], arrays['h.1.q'], arrays['h.2.q']
  arrays |= {f'h.{i}.b': np.ones(3, np.float32) for i in (0, 1, 3)}
  arrays |= {f'h.{i}.up': np.ones((D, 2 * D), np.float32) for i in range(2)}
  arrays['h.3.norm'] = np.ones(D, np.int32)
  tree = {**SHAPES, 'surprise': {'scale': (D,)}}
  with pytest.raises(WeightsError) as e:
    loading.load(Arrays(arrays), TABLE, shapes(tree=tree))
  assert e.value.what.splitlines() == [
    'somewhere does not have the parameters of the model',
    '  missing (2): embed.weight, h.{1-2}.q',
    '  of another shape or kind (2): h.{0-1}.up (8, 16), expected (16, 8), h.3.norm holds I32',
    '  left over (1): h.{0-1,3}.b',
    '  parameters that the name map does not know (1): surprise.scale',
  ]


def test_constants_are_passed_over():
  arrays = {**model(), 'h.0.mask': np.ones((3, 3), np.int32)}
  assert_tree(loading.load(Arrays(arrays), TABLE, shapes()), expected(arrays))


def test_a_repeated_unembedding_is_passed_over_and_another_one_is_not():
  arrays = model()
  arrays['head'] = arrays['embed.weight'].copy()
  assert_tree(loading.load(Arrays(arrays), TABLE, shapes()), expected(arrays))
  arrays['head'][3, 1] += 1
  with pytest.raises(WeightsError, match=r'head differs from embed\.weight.*one parameter'):
    loading.load(Arrays(arrays), TABLE, shapes())
  untied = {**SHAPES, 'unembed': (D, V)}
  found = loading.load(Arrays(arrays), TABLE, shapes(tree=untied))
  assert_tree(found, {**expected(arrays), 'unembed': arrays['head'].T})


@given(st.sets(st.integers(0, 99), min_size=1))
def test_shortened_names_stand_for_those_that_were_there(layers):
  (short,) = matching.shorten(f'h.{i}.ln_1.weight' for i in layers)
  numbers = short.removeprefix('h.').removesuffix('.ln_1.weight').strip('{}')
  found = []
  for run in numbers.split(','):
    first, _, last = run.partition('-')
    found += range(int(first), int(last or first) + 1)
  assert found == sorted(layers)


MEASURE = """
import sys, jax, jax.numpy as jnp, numpy as np
from mechjax.weights import llama_cpp
from mechjax.weights.gguf import GGUFFile
path, L, D, F, V, dtype = sys.argv[1], *map(int, sys.argv[2:6]), jnp.dtype(sys.argv[6])
def of(*shape): return jax.ShapeDtypeStruct(shape, dtype)
attn = {'q': of(L, D, D // 64, 64), 'k': of(L, D, D // 64, 64), 'v': of(L, D, D // 64, 64), 'o': of(L, D // 64, 64, D)}
mlp = {'gate': of(L, D, F), 'up': of(L, D, F), 'down': of(L, F, D)}
norms = {'attn_norm': {'scale': of(L, D)}, 'mlp_norm': {'scale': of(L, D)}}
shapes = {'embed': {'tokens': of(V, D)}, 'layers': {'attn': attn, 'mlp': mlp, **norms}, 'final_norm': {'scale': of(D)}}
file = GGUFFile(path)
file.read('blk.0.attn_q.weight')
jax.block_until_ready(jax.device_put(np.zeros(9)))
def peak():  # Not ru_maxrss, which begins with that of the process that started this one.
  (line,) = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
  return 1024 * int(line.split()[1])
before = peak()
params = llama_cpp.read(file, shapes)
print((peak() - before) / sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_loading_takes_little_more_memory_than_the_parameters(tmp_path, dtype):
  """Half of this model is its embedding, which a loader that reads whole tensors holds twice."""
  n_layers, D, F, V = 4, 512, 2048, 40_000
  writer = gguf.GGUFWriter(tmp_path / 'large.gguf', 'llama')
  kind = gguf.GGMLQuantizationType.Q8_0

  def add(name, *shape):
    writer.add_tensor(name, np.ones((shape[0], shape[1] // 32 * 34), np.uint8), raw_dtype=kind)

  for i in range(n_layers):
    for name in ('q', 'k', 'v', 'output'):
      add(f'blk.{i}.attn_{name}.weight', D, D)
    for name, shape in {'gate': (F, D), 'up': (F, D), 'down': (D, F)}.items():
      add(f'blk.{i}.ffn_{name}.weight', *shape)
    for name in ('attn', 'ffn'):
      writer.add_tensor(f'blk.{i}.{name}_norm.weight', np.ones(D, np.float32))
  add('token_embd.weight', V, D)
  writer.add_tensor('output_norm.weight', np.ones(D, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  sizes = [str(n) for n in (n_layers, D, F, V)]
  command = [sys.executable, '-c', textwrap.dedent(MEASURE), tmp_path / 'large.gguf', *sizes, dtype]
  ratio = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
  assert 0.9 < ratio < 1.3, ratio
