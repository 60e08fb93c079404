"""Where each axis of the decoder's parameters lives on a mesh.

An axis of a parameter has a meaning (heads, neurons, vocabulary), and a rule says which axis of the mesh holds it. Two
axes are enough for most: `data` holds rows of the batch, `tensor` holds heads and neurons, so that a layer costs two
sums over `tensor`, after z and after the neurons. What is computed from sharded parameters and tokens is placed by
XLA accordingly.

    mesh = jax.make_mesh((4, 2), ('data', 'tensor'))
    model = mechjax.load('smollm2-135m', mesh=mesh)      # each device reads its own shards

Sharp edge: an axis that the devices of its mesh axis do not divide is held whole by each of them (3 key-value heads on
2 devices): correct, and larger. The mesh's axes must be of the type Auto, which is what `jax.make_mesh` gave before JAX
0.9 and `axis_types=` gives now.
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
"""Meaning of an axis -> axis of the mesh. Axes without a rule are held whole."""

# The meaning of every axis of every parameter, less the leading axis of layers.
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
  """The parameters of a decoder, as shapes that know where they live; loaders read them shard by shard.

  Args:
    config: the description.
    mesh: the devices.
    dtype: of every leaf.
    rules: meaning of an axis -> axis of the mesh; rules for axes that the mesh has not are left out.

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
  """Tokens, int [B, T], spread by rows over the mesh."""
  spec = _fit((rules.get('batch'), None), jnp.shape(tokens), mesh)
  return jax.device_put(tokens, NamedSharding(mesh, spec))


def _fit(spec: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """The spec without axes that the mesh has not, or that do not divide evenly."""
  fits = [
    a if a in mesh.shape and size % mesh.shape[a] == 0 else None for a, size in zip(spec, shape)
  ]
  return PartitionSpec(*fits)


def _check_mesh(mesh: Mesh) -> None:
  if any(kind is not AxisType.Auto for kind in mesh.axis_types):
    raise errors.MechjaxError(
      f'the mesh has axes of the types {mesh.axis_types}',
      cause='the decoder leaves the placing of activations to XLA',
      hint='jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n)',
    )
