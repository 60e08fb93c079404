"""Weights with their entries permuted: the control of a claim that trained weights do something.

A random MLP breaks linear structure too, a little. So an index of a trained MLP is compared with that of the same MLP
whose weights are permuted: every matrix keeps its numbers, its scale and its distribution, and loses what was learned.

    control = shuffle_weights(model.params, 'mlp', stacked=1)           every matrix of every MLP, each layer by itself
    control = shuffle_weights(model.params, 'mlp', stacked=1, kind='rows')
    model.apply(control, tokens)

Sharp edge: with layers stacked on a leading axis, a permutation over the whole array would mix layers of different
scales, and without such an axis a row would only be permuted within itself. The number of leading axes that stay apart
has no default: `stacked=1` for the parameters of our decoder, `stacked=0` for one array a layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from mechjax import errors
from mechjax.errors import FactsError
from mechjax.facts.finite import check_count
from mechjax.host_arrays import check_seed

KINDS = ('entries', 'rows')
"""Permutations of all entries of a matrix, or of its rows (its second axis from the end), which keeps each row."""


def shuffle_weights(
  params: PyTree, part: str, *, stacked: int, kind: str = 'entries', seed: int = 0
) -> PyTree:
  """Permutes the weights of one part of a model; all others are the same arrays.

  Args:
    params: parameters, a pytree of arrays.
    part: key that the path of an array must contain, such as 'mlp'.
    stacked: number of leading axes (layers) that are permuted each by itself.
    kind: one of `KINDS`. Vectors, such as biases, are permuted by entries in both.
    seed: the same seed gives the same permutation of each array, whatever the others are.

  Returns:
    Parameters with new arrays on the host, in their dtypes.

  Raises:
    FactsError: another kind, no array with such a path, arrays with different stacked axes, or an array with no axis
      beyond them.
  """
  if kind not in KINDS:
    raise errors.unknown(FactsError, 'kind of permutation', kind, KINDS)
  check_count('stacked', stacked, 0)
  check_seed(seed, FactsError)
  paths, structure = jax.tree.flatten_with_path(params)
  keys = [[_name(entry) for entry in path] for path, _ in paths]
  if not any(part in path for path in keys):
    known = sorted({key for path in keys for key in path})
    raise errors.unknown(FactsError, 'part of the parameters', part, known)
  chosen = {'/'.join(p): np.shape(x) for p, (_, x) in zip(keys, paths) if part in p}
  _check_stacked(chosen, stacked)
  leaves = [
    _shuffle('/'.join(path), x, kind, seed, stacked) if part in path else x
    for path, (_, x) in zip(keys, paths)
  ]
  return jax.tree.unflatten(structure, leaves)


def _name(entry: object) -> str:
  """The key, index or attribute of one step of a path."""
  for attribute in ('key', 'name', 'idx'):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  return str(entry)


def _check_stacked(shapes: Mapping[str, tuple[int, ...]], stacked: int) -> None:
  """Raises FactsError unless all arrays have the same leading axes, those of the layers."""
  (path, first), *_ = shapes.items()
  other = next((p for p, shape in shapes.items() if shape[:stacked] != first[:stacked]), None)
  if other is not None:
    raise FactsError(
      f'{path} has shape {list(first)} and {other} {list(shapes[other])}: {stacked} leading axes differ',
      cause='one array a layer, whose rows would be permuted each by itself',
      hint='stacked=0 for parameters with one array a layer',
    )


def _shuffle(path: str, x: object, kind: str, seed: int, stacked: int) -> np.ndarray:
  array = np.asarray(x)
  if array.ndim <= stacked:
    raise FactsError(
      f'{path} has shape {list(array.shape)}: no axis is left to permute beyond {stacked} stacked ones',
      hint='stacked=0 for parameters with one array a layer',
    )
  random = np.random.default_rng([seed, zlib.crc32(path.encode())])
  lead, own = array.shape[:stacked], array.shape[stacked:]
  each = array.reshape(-1, *own)
  if kind == 'rows' and len(own) > 1:
    new = [np.take(m, random.permutation(own[-2]), axis=-2) for m in each]
  else:
    new = [random.permutation(m.reshape(-1)).reshape(own) for m in each]
  return np.stack(new).reshape(*lead, *own)
