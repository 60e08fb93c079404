"""Checks of weights, activations and tokens: each raises a NeuronError that contains the value.

One NaN in an activation makes every mean over tokens NaN, and a transposed matrix of the right size gives numbers that
look plausible. Shapes, dtypes and values are checked here before anything is computed.
"""

from __future__ import annotations

import numbers

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Int64, Shaped

from mechjax.errors import NeuronError
from mechjax.host_arrays import as_host


def check_floats(
  name: str, x: Float[ArrayLike, ' ...'], axes: str, sizes: dict[str, int] | None = None
) -> Float[Array | np.ndarray, ' ...']:
  """Returns an array of finite floating-point numbers, unchanged.

  Args:
    name: its name in messages.
    x: the array.
    axes: letters of its axes, such as 'F D'.
    sizes: sizes that are known, keyed by the letter.

  Raises:
    NeuronError: not floating-point, other axes or sizes, no numbers, NaN or infinity; traced or masked arrays.
  """
  letters, shape, dtype = axes.split(), np.shape(x), getattr(x, 'dtype', None)
  wanted = [str((sizes or {}).get(letter, letter)) for letter in letters]
  fits = len(shape) == len(letters) and all(
    (sizes or {}).get(letter, n) == n > 0 for letter, n in zip(letters, shape)
  )
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or not fits:
    raise NeuronError(
      f'{name} has shape {list(shape)} and dtype {dtype or type(x).__name__}',
      cause=f'expected floating-point numbers of shape [{", ".join(wanted)}]',
      hint='weights and activations of one model, and none of them transposed',
    )
  if not np.isfinite(as_host(name, x, NeuronError)).all():
    raise NeuronError(
      f'{name} contains NaN or infinity',
      cause='an overflow, damaged weights, or the columns of padding, which have no values',
    )
  return x  # type: ignore[return-value]


def check_ids(
  name: str, ids: Int[ArrayLike, ' ...'], limit: int, shape: tuple[int, ...] | None = None
) -> Int64[np.ndarray, ' ...']:
  """Returns integers from 0 to `limit` - 1 as int64 on the host.

  Args:
    name: their name in messages.
    ids: the integers.
    limit: number of values that exist.
    shape: the expected shape; None for any shape that is not empty.

  Raises:
    NeuronError: not integers, another shape, no numbers, or a value that does not exist.
  """
  array = as_host(name, ids, NeuronError)
  if not np.issubdtype(array.dtype, np.integer) or (shape is not None and array.shape != shape):
    raise NeuronError(
      f'{name} has shape {list(array.shape)} and dtype {array.dtype}',
      cause=f'expected integers{"" if shape is None else f" of shape {list(shape)}"}',
    )
  if not array.size:
    raise NeuronError(f'{name} is empty', hint='a mean over no tokens has no value')
  if array.min() < 0 or array.max() >= limit:
    bad = array.max() if array.max() >= limit else array.min()
    raise NeuronError(f'{name} contains {bad}; expected integers from 0 to {limit - 1}')
  return array.astype(np.int64)


def check_count(name: str, value: int, minimum: int = 1) -> int:
  """Returns a whole number.

  Raises:
    NeuronError: not a whole number, or less than the minimum.
  """
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < minimum:
    raise NeuronError(f'{name}={value!r} should be a whole number, at least {minimum}')
  return int(value)


def check_close(
  name: str, found: Shaped[ArrayLike, ' ...'], given: Shaped[ArrayLike, ' ...'], tolerance: float, cause: str
) -> None:  # fmt: skip
  """Raises NeuronError unless two arrays of one shape differ by at most a tolerance.

  Args:
    name: meaning of the values in the message.
    found, given: computed from the weights, and computed by the model.
    tolerance: largest difference that is allowed.
    cause: the likely cause of a larger one.
  """
  if np.shape(found) != np.shape(given):
    raise NeuronError(f'{name}: shapes {np.shape(found)} and {np.shape(given)} differ', cause=cause)
  gap = float(np.abs(np.asarray(found, np.float64) - np.asarray(given, np.float64)).max())
  if not gap <= tolerance:
    raise NeuronError(
      f'{name}: what the weights give differs from the model by up to {gap:.3g}, more than {tolerance:.3g}',
      cause=cause,
    )
