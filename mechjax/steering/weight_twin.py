"""Weights that cannot write a direction: the twin of its removal.

A removal at every write, W x - r̂ r̂ᵀ W x, is a linear map after the matrix, so it can be moved into the matrix (Arditi
et al. 2024, section 4.1):

    W <- (I - r̂ r̂ᵀ) W   for every matrix and bias that writes to the stream

The twin is an ordinary model: it needs no harvest, runs in any code, and its logits equal those of the removal to
rounding. Which parameters write to the stream is knowledge of a code base, so it comes in as a table: the path of each
parameter in the tree, as a pattern, and its axis of D. For our decoder `mechjax.models.writers` has it:

    params, config = writers.untie(model.params, model.config)
    twin = orthogonalise(params, r, writers.stream_writers(config))
    logits = decoder.forward(twin, tokens, config)

Paths are the keys of the tree, joined by '/'; `*` stands for any one part: 'layers/*/attn/o' for a list of layers.

Sharp edges: a parameter that is left out of the table still writes the direction. An embedding that is also the
unembedding must be untied first: the logits read the stream through it, and with a gain in the final norm the changed
rows give other logits. Where a norm stands between a matrix and the stream (Gemma 2 and 3) there is no twin.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mechjax.errors import SteeringError
from mechjax.steering.bases import as_unit, remove


def orthogonalise(
  params: PyTree, direction: Float[Array | np.ndarray, ' D'], writers: Mapping[str, int]
) -> PyTree:
  """Parameters without a direction in what they write.

  Args:
    params: tree of arrays.
    direction: of any length but 0, [D].
    writers: axis of D of every parameter that writes to the stream, keyed by the pattern of its path.

  Returns:
    The same tree; other parameters are the same arrays.

  Raises:
    SteeringError: a pattern without a parameter, an axis of another size than D, an empty table, or not a direction.
  """
  basis_1xD = as_unit(direction)[None]
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  paths = ['/'.join(_name(key) for key in path) for path, _ in leaves]
  axes = _find_axes(paths, writers)
  new = [
    x if axis is None else _remove_along(path, x, axis, basis_1xD)
    for path, (_, x), axis in zip(paths, leaves, axes)
  ]
  return jax.tree.unflatten(structure, new)


def _name(key: object) -> str:
  """One key of a path, without brackets or quotes."""
  for attribute in ('key', 'idx', 'name'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def _matches(path: str, pattern: str) -> bool:
  """Whether a path has the parts of a pattern, one for one."""
  parts, patterns = path.split('/'), pattern.split('/')
  return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _find_axes(paths: list[str], writers: Mapping[str, int]) -> list[int | None]:
  """The axis of D of each parameter that a pattern selects, and None for the others."""
  unused = [p for p in writers if not any(_matches(path, p) for path in paths)]
  if unused or not writers:
    raise SteeringError(
      f'no parameter has the path {unused[0]!r}' if unused else 'the table of writers is empty',
      where=f'paths: {", ".join(paths[:12])}',
      cause='the table of another model',
    )
  axes: list[int | None] = []
  for path in paths:
    found = {axis for p, axis in writers.items() if _matches(path, p)}
    if len(found) > 1:
      raise SteeringError(f'{path!r} has the axes {sorted(found)} in the table of writers')
    axes.append(found.pop() if found else None)
  return axes


def _remove_along(path: str, x: Array, axis: int, basis_1xD: Array) -> Array:
  width = basis_1xD.shape[1]
  if not -x.ndim <= axis < x.ndim or x.shape[axis] != width:
    raise SteeringError(
      f'{path!r} has shape {list(x.shape)}, whose axis {axis} is not of the size {width} of the direction',
      cause='a direction of another model, or an axis of inputs in the table',
    )
  moved = jnp.moveaxis(jnp.asarray(x), axis, -1)
  return jnp.moveaxis(remove(moved, basis_1xD), -1, axis)
