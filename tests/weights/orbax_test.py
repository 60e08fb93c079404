"""Checkpoints against Orbax's own reading and writing."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mechjax.errors import WeightsError
from mechjax.weights import orbax

CONFIG = {'n_layers': 4, 'local': [True, False], 'rope': None, 'eps': 1e-5}


def parameters():
  rng = np.random.default_rng(0)

  def of(*shape, dtype=np.float32):
    return jnp.asarray(rng.normal(size=shape).astype(dtype))

  layers = {'attn': {'q': of(4, 8, 2, 3)}, 'norm': {'scale': of(4, 8, dtype=ml_dtypes.bfloat16)}}
  return {'embed': {'tokens': of(16, 8)}, 'layers': layers, 'scale': of()}


def like(params, dtype=None, sharding=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding and sharding(x)),
    params,
  )


def assert_equal(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp('orbax') / 'checkpoint'
  orbax.write(directory, parameters(), CONFIG)
  return directory


def test_parameters_and_config_come_back(written):
  assert orbax.config(written) == CONFIG
  assert_equal(orbax.read(written, like(parameters())), parameters())


def test_orbax_restores_what_is_written(written):
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    args = ocp.args.StandardRestore(like(parameters()))
    assert_equal(checkpointer.restore(written / 'params', args=args), parameters())


@pytest.mark.parametrize('options', [{}, {'use_ocdbt': False}, {'use_zarr3': True}])
def test_what_orbax_saves_is_read(tmp_path, options):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
    checkpointer.save(tmp_path / 'plain', args=ocp.args.PyTreeSave(parameters()))
  dotted = tmp_path / 'plain' / '..' / 'plain'
  assert_equal(orbax.read(dotted, like(parameters())), parameters())


def test_large_arrays_are_in_chunks_of_whole_layers(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax, '_CHUNK_BYTES', 256)
  orbax.write(tmp_path / 'x', parameters(), {})
  file = orbax.OrbaxCheckpoint(tmp_path / 'x')
  assert file.tensors['layers.attn.q'].together == 1
  assert file.tensors['embed.tokens'].together == 8
  assert_equal(orbax.read(tmp_path / 'x', like(parameters())), parameters())


def test_other_dtypes_and_shardings_are_made_while_reading(written):
  mesh = jax.make_mesh((4, 2), ('a', 'b'))

  def sharding(x):
    return NamedSharding(mesh, PartitionSpec('a', 'b') if x.ndim > 1 else PartitionSpec())

  target = like(parameters(), jnp.bfloat16, sharding)
  found = orbax.read(written, target)
  assert_equal(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters()))
  assert found['layers']['attn']['q'].sharding == target['layers']['attn']['q'].sharding


def test_sharded_arrays_are_written(tmp_path):
  mesh = jax.make_mesh((8,), ('a',))
  tokens = jax.device_put(parameters()['embed']['tokens'], NamedSharding(mesh, PartitionSpec('a')))
  orbax.write(tmp_path / 'x', {'tokens': tokens}, {})
  assert_equal(orbax.read(tmp_path / 'x', like({'tokens': tokens})), {'tokens': tokens})


def test_one_error_names_all_that_does_not_fit(written):
  wanted = like(parameters())
  wanted['layers']['attn'] = {'k': jax.ShapeDtypeStruct((4, 8, 2, 3), jnp.float32)}
  wanted['embed']['tokens'] = jax.ShapeDtypeStruct((17, 8), jnp.float32)
  with pytest.raises(WeightsError) as e:
    orbax.read(written, wanted)
  assert e.value.what.splitlines()[1:] == [
    '  missing (1): layers.attn.k',
    '  of another shape or kind (1): embed.tokens (16, 8), expected (17, 8)',
    '  left over (1): layers.attn.q',
  ]


def test_a_checkpoint_is_never_written_over(written):
  with pytest.raises(WeightsError, match='exists already'):
    orbax.write(written, parameters(), CONFIG)


def test_a_directory_without_a_checkpoint_says_so(tmp_path):
  with pytest.raises(WeightsError, match='no Orbax checkpoint in'):
    orbax.read(tmp_path, {})
  with pytest.raises(WeightsError, match='no metadata in'):
    orbax.config(tmp_path)


def test_chunks_that_promise_more_than_the_array_are_refused(tmp_path):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    checkpointer.save(tmp_path / 'x', args=ocp.args.PyTreeSave(parameters()))
  description = tmp_path / 'x' / 'embed.tokens' / '.zarray'
  described = json.loads(description.read_text())
  description.write_text(json.dumps({**described, 'chunks': [1 << 20, 1 << 18]}))
  with pytest.raises(
    WeightsError, match=r"'embed\.tokens' cannot be read: .* in chunks of \(1048576"
  ):
    orbax.read(tmp_path / 'x', like(parameters()))


def test_numbers_that_are_gone_are_no_zeros(tmp_path):
  """Uses Orbax's files without OCDBT, in which a chunk is a file."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
    checkpointer.save(tmp_path / 'x', args=ocp.args.PyTreeSave(parameters()))
  (tmp_path / 'x' / 'embed.tokens' / '0.0').unlink()
  with pytest.raises(WeightsError, match=r"array 'embed\.tokens' cannot be read"):
    orbax.read(tmp_path / 'x', like(parameters()))
