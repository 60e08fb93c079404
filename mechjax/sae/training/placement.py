"""Sharding of dictionaries and batches over a mesh of devices.

Two axes: `data` for rows of the batch, `model` for latents. Every array with an axis of latents is sharded over `model`
and everything else is replicated, so a step costs a sum over `model` after the decoder and a sum over `data` of the
gradients. Optimiser state is sharded like its parameter.

    W_enc [N, D, M]     P(None, None, 'model')           vectors and counters [N, M]     P(None, 'model')
    W_dec [N, M, E]     P(None, 'model', None)           batches [B, D]                  P('data', None)

The axis of layers of a cross-layer transcoder is not sharded: W_enc [N, L, D, M] is P(None, None, None, 'model').

On one device the mesh is 1 x 1; there is no separate code path.

Sharp edges: axes of the mesh must have the type Auto, and their sizes must divide the dimensions that they shard. A
width that is not divisible raises an error and is not padded, because the padding would be counted as dead latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture

AXES = ('data', 'model')


def mesh_of(mesh: Mesh | None) -> Mesh:
  """Checks a mesh; returns a mesh of the first device for None.

  Raises:
    SAEError: the axes are not `data` and `model`, or their type is not Auto.
  """
  if mesh is None:
    return jax.make_mesh((1, 1), AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:1])
  if {*mesh.axis_names} != {*AXES} or any(kind is not AxisType.Auto for kind in mesh.axis_types):
    raise SAEError(
      f'a mesh with axes {mesh.axis_names} of types {mesh.axis_types}',
      hint=f'jax.make_mesh((1, 8), {AXES}, (jax.sharding.AxisType.Auto,) * 2)',
    )
  return mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of activations, [B, D]."""
  return NamedSharding(mesh, PartitionSpec('data', None))


def ensemble_shardings(sae: Architecture, members: Any, mesh: Mesh) -> Any:
  """Shardings of the state of an ensemble.

  Args:
    sae: settings of its dictionaries.
    members: any tree of shapes with a leading axis of members; parameters and their optimiser state are found by name.
    mesh: the devices.

  Returns:
    The tree with a sharding for each shape.

  Raises:
    SAEError: the mesh does not divide the width.
  """
  shards = mesh.shape['model']
  if sae.width % shards:
    raise SAEError(
      f'width={sae.width} of {type(sae).__name__} is not divisible by {shards} devices',
      where=f'axis model of the mesh {dict(mesh.shape)}',
      hint=f'use a width of {-(-sae.width // shards) * shards}, or another mesh',
    )
  specs = {'tokens_since_fired': PartitionSpec(None, 'model')}
  for name, axis in sae.latent_axes.items():  # of a member; an ensemble has one more axis before it
    specs[name] = PartitionSpec(*[None] * (axis + 1), 'model')

  def place(path: tuple, _: Any) -> NamedSharding:
    return NamedSharding(mesh, specs.get(_last_name(path), PartitionSpec()))

  return jax.tree_util.tree_map_with_path(place, members)


def check_batch(batch: Mapping[str, jax.Array], sites: set[str], mesh: Mesh) -> None:
  """Checks that a batch has all sites and can be sharded.

  Raises:
    SAEError: a site is missing, or the mesh does not divide the number of tokens.
  """
  if missing := sorted(sites - {*batch}):
    raise SAEError(f'a batch without {missing}', cause=f'it has {sorted(batch)}')
  n_tokens, shards = {len(batch[site]) for site in sites}, mesh.shape['data']
  if len(n_tokens) > 1:
    raise SAEError(f'sites of one batch with different numbers of tokens, {sorted(n_tokens)}')
  if n_tokens.pop() % shards:
    raise SAEError(
      f'a batch of {len(batch[min(sites)])} tokens is not divisible by {shards} devices',
      where=f'axis data of the mesh {dict(mesh.shape)}',
    )


def _last_name(path: tuple) -> Any:
  """Last name of a path into a tree: a key of a dict, or a field."""
  return getattr(path[-1], 'key', getattr(path[-1], 'name', None))
