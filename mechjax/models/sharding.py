"""Sharding rules: the mesh axis of each axis of the decoder's parameters.

An axis of a parameter has a meaning (heads, neurons, vocabulary), and a rule maps this meaning to an axis of the mesh.
Two axes are enough for most uses: `data` holds rows of the batch, `tensor` holds heads and neurons, so that a layer
costs two sums over `tensor`, after z and after the neurons. XLA places the values that are computed from sharded
parameters and tokens.

    mesh = jax.make_mesh((4, 2), ('data', 'tensor'))
    model = mechjax.load('smollm2-135m', mesh=mesh)      # each device reads its own shards

Sharp edges: an axis whose size is not a multiple of the size of its mesh axis is replicated (3 key-value heads on 2
devices): correct, but it takes more memory. The mesh's axes must be of the type Auto, the default of `jax.make_mesh`
before JAX 0.9; pass `axis_types=` from 0.9 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mechjax import errors
from mechjax.models.config import Config
from mechjax.models.parameters import shapes

RULES: Mapping[str, str] = {
  'batch': 'data',
  'vocabulary': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'neurons': 'tensor',
}
"""Meaning of an axis -> axis of the mesh. Axes without a rule are replicated."""

# The meaning of every axis of every parameter, without the leading axis of layers.
_AXES: dict[str, tuple[str, ...]] = {
  'embed.tokens': ('vocabulary', 'model'),
  'embed.positions': ('position', 'model'),
  'attn.q': ('model', 'heads', 'head'),
  'attn.k': ('model', 'kv_heads', 'head'),
  'attn.v': ('model', 'kv_heads', 'head'),
  'attn.o': ('heads', 'head', 'model'),
  'attn.q_bias': ('heads', 'head'),
  'attn.k_bias': ('kv_heads', 'head'),
  'attn.v_bias': ('kv_heads', 'head'),
  'attn.sinks': ('heads',),
  'mlp.gate': ('model', 'neurons'),
  'mlp.up': ('model', 'neurons'),
  'mlp.down': ('neurons', 'model'),
  'mlp.gate_bias': ('neurons',),
  'mlp.up_bias': ('neurons',),
  'unembed.kernel': ('model', 'vocabulary'),
  'unembed.bias': ('vocabulary',),
}


def shard_shapes(
  config: Config, mesh: Mesh, dtype: Any = jnp.float32, rules: Mapping[str, str] = RULES
) -> dict[str, Any]:
  """The parameters of a decoder, as shapes with shardings; loaders read them shard by shard.

  Args:
    config: the description.
    mesh: the devices.
    dtype: of every leaf.
    rules: meaning of an axis -> axis of the mesh; rules for axes that the mesh does not have are ignored.

  Returns:
    As `parameters.shapes`, each with a `NamedSharding`.

  Raises:
    MechjaxError: if the mesh's axes are not of the type Auto.
  """
  _check_mesh(mesh)

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    names = [k.key for k in path]
    stacked = names[0] == 'layers'
    axes = _AXES.get('.'.join(names[1:] if stacked else names), ())
    spec = (*(None,) * stacked, *(rules.get(a) for a in axes))
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, _fit(spec, leaf.shape, mesh))
    )

  return jax.tree_util.tree_map_with_path(place, shapes(config, dtype))


def shard_batch(tokens: jax.Array, mesh: Mesh, rules: Mapping[str, str] = RULES) -> jax.Array:
  """Tokens, int [B, T], with their rows sharded over the mesh."""
  spec = _fit((rules.get('batch'), None), jnp.shape(tokens), mesh)
  return jax.device_put(tokens, NamedSharding(mesh, spec))


def _fit(spec: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The spec without axes that the mesh does not have, or whose size does not divide evenly."""
  fits = [
    a if a in mesh.shape and size % mesh.shape[a] == 0 else None for a, size in zip(spec, shape)
  ]
  return PartitionSpec(*fits)


def _check_mesh(mesh: Mesh) -> None:
  if any(kind is not AxisType.Auto for kind in mesh.axis_types):
    raise errors.MechjaxError(
      f'the mesh has axes of the types {mesh.axis_types}',
      cause='the decoder leaves the placement of activations to XLA',
      hint='use jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n)',
    )
