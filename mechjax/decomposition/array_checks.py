"""Checks of arrays: each raises a CircuitError that contains the value.

A table of attributions is read as it is, and a NaN, a wrong layer or a transposed matrix gives a table as well. So
shapes, dtypes and values are checked before anything is computed:

    sizes = check_arrays({'z': (z, 'B T N H'), 'v': (v, 'B S K H')})        {'B': 2, 'T': 9, ...}
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from mechjax import precision
from mechjax.errors import CircuitError


def check_arrays(
  arrays: Mapping[str, tuple[Shaped[ArrayLike, ' ...'], str]],
  known: Mapping[str, int] | None = None,
) -> dict[str, int]:
  """Checks that floating-point arrays fit together, and returns the size of each axis, keyed by its letter.

  Args:
    arrays: each array with the letters of its axes, keyed by its name in messages.
    known: sizes that are known already.

  Raises:
    CircuitError: traced values, other numbers than floating-point ones, another number of axes, an empty axis, or one
      letter with two sizes.
  """
  sizes = dict(known or {})
  shapes = ', '.join(f'{name} {list(np.shape(x))}' for name, (x, _) in arrays.items())
  for name, (x, axes) in arrays.items():
    letters, dtype = axes.split(), getattr(x, 'dtype', None)
    if isinstance(x, jax.core.Tracer):
      raise CircuitError(
        f'{name} is traced, and its values are checked',
        hint='call this function outside of jit, grad and vmap; it compiles what it computes',
      )
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or np.ndim(x) != len(letters):
      raise CircuitError(
        f'{name} has shape {list(np.shape(x))} and type {dtype or type(x).__name__}',
        cause=f'expected floating-point numbers of shape [{", ".join(letters)}]',
      )
    for letter, n in zip(letters, np.shape(x)):
      if n == 0 or sizes.setdefault(letter, n) != n:
        raise CircuitError(
          f'{name} has {n} at axis {letter} of [{", ".join(letters)}]; expected {sizes[letter] or "at least 1"}',
          where=shapes,
          cause='arrays of two models, layers or batches, or axes in another order',
        )
  return sizes


def check_finite(name: str, x: Shaped[ArrayLike, ' ...']) -> None:
  """Raises CircuitError for NaN or infinity."""
  is_finite = np.isfinite if isinstance(x, np.ndarray) else jnp.isfinite
  if not bool(is_finite(x).all()):
    raise CircuitError(
      f'{name} contains NaN or infinity',
      cause='an overflow, damaged weights, or the columns of padding without their mask',
    )


def check_mask(
  mask: Bool[ArrayLike, 'B T'] | None, shape: tuple[int, int]
) -> Bool[np.ndarray, 'B T']:
  """Returns the mask of real tokens, all True without one.

  Raises:
    CircuitError: another shape or dtype, or a row without a token.
  """
  if mask is None:
    return np.ones(shape, bool)
  found = np.asarray(mask)
  if found.shape != shape or found.dtype != bool:
    raise CircuitError(
      f'a mask of shape {list(found.shape)} and type {found.dtype}; expected bool {list(shape)}'
    )
  empty = np.flatnonzero(~found.any(1))
  if empty.size:
    raise CircuitError(f'row {empty[0]} of the mask has no token')
  return found


def check_columns(
  name: str, positions: int | Int[ArrayLike, ' B'], real: Bool[np.ndarray, 'B T']
) -> Int[np.ndarray, ' B']:
  """Columns of one position of each row, counted from 0.

  Args:
    name: their name in messages.
    positions: a column, or one for each row; negative ones count from the last column.
    real: True at tokens.

  Raises:
    CircuitError: not whole numbers, another number of them, a column that does not exist or is padding.
  """
  (B, T), found = real.shape, np.asarray(positions)
  if found.dtype.kind not in 'iu' or found.shape not in ((), (B,)):
    raise CircuitError(f'{name}={positions!r:.100} should be a column, or one for each of {B} rows')
  columns = np.broadcast_to(np.where(found < 0, found + T, found), (B,))
  if columns.min() < 0 or columns.max() >= T:
    raise CircuitError(f'{name}={positions!r:.100} is outside of {T} columns')
  padding = np.flatnonzero(~real[np.arange(B), columns])
  if padding.size:
    raise CircuitError(
      f'{name}={positions!r:.100} is padding in row {padding[0]}',
      hint='one column for each row: mask.sum(1) - 1 are the last tokens if padding is on the right',
    )
  return columns.astype(np.int32)


def check_ids(
  name: str, ids: int | Sequence[int] | Int[ArrayLike, ' k'], limit: int
) -> Int[np.ndarray, ' k']:
  """Whole numbers from 0 to `limit` - 1 as an array with one axis.

  Raises:
    CircuitError: not whole numbers, none of them, or one that does not exist.
  """
  found = np.atleast_1d(np.asarray(ids))
  if found.ndim != 1 or found.dtype.kind not in 'iu' or not found.size:
    raise CircuitError(f'{name}={ids!r:.100} should be one whole number or a list of them')
  if found.min() < 0 or found.max() >= limit:
    raise CircuitError(f'{name}={ids!r:.100} should be from 0 to {limit - 1}')
  return found.astype(np.int32)


def check_count(name: str, value: int, minimum: int = 1) -> int:
  """Returns a whole number.

  Raises:
    CircuitError: not a whole number, or less than the minimum.
  """
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < minimum:
    raise CircuitError(f'{name}={value!r} should be a whole number, at least {minimum}')
  return int(value)


def as_common(*arrays: Float[ArrayLike, ' ...']) -> list[Float[Array, ' ...']]:
  """Arrays in one dtype, the widest of them and at least float32."""
  found = [jnp.asarray(x) for x in arrays]
  dtype = np.result_type(*(precision.wide_dtype(x.dtype) for x in found))
  return [x.astype(dtype) for x in found]
