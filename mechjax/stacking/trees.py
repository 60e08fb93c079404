"""Parameters of all layers as one tree, and a scan of your own block over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import sites
from mechjax.errors import StackingError


def stack_params(layers: Sequence[Any]) -> Any:
  """Stacks the parameters of identical layers.

  Args:
    layers: one pytree of arrays for each layer, all of one structure, with leaves of one shape and dtype.

  Returns:
    One pytree whose leaves have a leading axis of layers.

  Raises:
    StackingError: there is no layer, or two layers differ in structure, shape or dtype; the error says which and where.
  """
  if not layers:
    raise StackingError('there are no layers to stack', hint='give at least one tree of parameters')
  first, structure = jax.tree.flatten_with_path(layers[0])
  columns: list[list[Any]] = [[x] for _, x in first]
  for n, layer in enumerate(layers[1:], 1):
    other: Any
    leaves, other = jax.tree.flatten(layer)
    if other != structure:
      raise StackingError(
        f'layer {n} has the structure {other}, layer 0 has {structure}',
        cause='layers of different kinds do not fit into one scan',
      )
    for (path, old), new, column in zip(first, leaves, columns):
      a, b = [(jnp.shape(x), jnp.result_type(x).name) for x in (old, new)]
      if a != b:
        raise StackingError(
          f'{jax.tree_util.keystr(path)} has shape {b[0]} and dtype {b[1]} in layer {n}, '
          f'{a[0]} and {a[1]} in layer 0',
          cause='layers of different kinds do not fit into one scan',
        )
      column.append(new)
  return jax.tree.unflatten(structure, [jnp.stack(c) for c in columns])


def unstack_params(stacked: Any) -> list[Any]:
  """Inverts `stack_params`: returns one pytree for each layer.

  Raises:
    StackingError: the leaves do not share a leading axis.
  """
  n = depth(stacked)
  return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(n)]


def depth(stacked: Any) -> int:
  """Length of the leading axis that all leaves share."""
  sizes = {jax.tree_util.keystr(p): jnp.shape(x)[:1] for p, x in jax.tree.leaves_with_path(stacked)}
  found = set(sizes.values())
  if len(found) != 1 or () in found:
    raise StackingError(
      f'the leaves have no common leading axis of layers: {dict(list(sizes.items())[:8])}',
      hint='stack_params(layers) makes such a tree',
    )
  return found.pop()[0]


def scan_layers(
  block: Callable[[Any, Any], Any],
  stacked: Any,
  x: Any,
  *,
  checkpoint: bool = False,
  unroll: bool = False,
) -> Any:
  """Runs x = block(layer_params, x) through all layers, as one scan.

  Args:
    block: (parameters of one layer, x) -> x, of one structure, shape and dtype; may sow: the iteration is the layer.
    stacked: parameters with a leading axis of layers.
    x: a pytree of arrays.
    checkpoint: keep only the x of every layer for the backward pass, and recompute the other values.
    unroll: a Python loop over the layers instead, with the same sites (for comparison: compile time grows with depth).

  Returns:
    x after the last layer.

  Raises:
    StackingError: the leaves of `stacked` do not share a leading axis.
  """
  n = depth(stacked)
  body = jax.checkpoint(block, prevent_cse=unroll) if checkpoint else block
  if unroll:
    for i, params in enumerate(unstack_params(stacked)):
      with sites.layer(i):
        x = body(params, x)
    return x
  return jax.lax.scan(lambda x, params: (body(params, x), None), x, stacked, length=n)[0]
