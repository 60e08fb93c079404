"""Checks of dictionaries, activations and masks: each raises an SAEError that contains the value.

Two dictionaries of another width can be multiplied all the same if only one axis differs, an ensemble has one axis too
many, and one NaN makes every mean NaN. These are found here, before anything is computed.

    W_enc_MxD, W_dec_MxE = check_dictionary('a', params)
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host

Floats = Float[np.ndarray | Array, ' ...']


def check_floats(name: str, x: Floats, axes: str) -> Float[np.ndarray, ' ...']:
  """Returns an array of finite floating-point numbers on the host, in its own dtype.

  Args:
    name: its name in messages.
    x: the array.
    axes: letters of its axes, such as 'M D'; 'B T D' is the number of axes.

  Raises:
    SAEError: not floating-point, another number of axes, no numbers, NaN or infinity; traced or masked arrays.
  """
  array = as_host(name, x, SAEError)
  letters = axes.split()
  if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim != len(letters) or not array.size:
    raise SAEError(
      f'{name} has shape {list(array.shape)} and dtype {array.dtype}',
      cause=f'expected floating-point numbers of shape [{", ".join(letters)}]',
    )
  if not np.isfinite(array).all():
    raise SAEError(
      f'{name} contains NaN or infinity',
      cause='a training that diverged, an overflow, or the columns of padding, which have no values',
    )
  return array


def check_dictionary(
  name: str, params: Mapping[str, Any]
) -> tuple[Float[np.ndarray, 'M D'], Float[np.ndarray, 'M E']]:
  """Encoder and decoder of a dictionary, with one row for each latent.

  Args:
    name: its name in messages.
    params: parameters with W_enc [D, M] and W_dec [M, E].

  Raises:
    SAEError: a matrix is missing or not finite, they do not fit each other, or a latent has a direction of length 0.
  """
  if not isinstance(params, Mapping) or not {'W_enc', 'W_dec'} <= {*params}:
    found = sorted(params) if isinstance(params, Mapping) else type(params).__name__
    raise SAEError(
      f'{name} has {found}; expected the parameters W_enc and W_dec',
      cause='a cross-layer transcoder, or the result of load: a dictionary and its parameters',
      hint='sae, params = load(...)',
    )
  enc = check_floats(f'W_enc of {name}', params['W_enc'], 'D M').T
  dec = check_floats(f'W_dec of {name}', params['W_dec'], 'M E')
  if len(enc) != len(dec):
    raise SAEError(
      f'W_enc and W_dec of {name} have shapes {enc.T.shape} and {dec.shape}; expected [D, M] and [M, E]'
    )
  check_directions(f'encoder columns of {name}', enc)
  check_directions(f'decoder rows of {name}', dec)
  return enc, dec


def check_directions(name: str, rows: Float[np.ndarray, 'M D']) -> None:
  """Raises SAEError for rows of length 0, which have no direction and no cosine."""
  zero = np.flatnonzero(~rows.any(1))
  if zero.size:
    raise SAEError(
      f'{zero.size} of {len(rows)} {name} have length 0, the first is {zero[0]}',
      cause='latents that were removed, or that weight decay has erased',
      hint='leave these latents out of both matrices',
    )


def check_same_shape(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
  """Raises SAEError for two dictionaries of different shapes."""
  shapes = [[np.shape(p[name]) for name in ('W_enc', 'W_dec')] for p in (first, second)]
  if shapes[0] != shapes[1]:
    raise SAEError(
      f'dictionaries with W_enc and W_dec of shapes {shapes[0]} and {shapes[1]}',
      cause='dictionaries of another width or of sites of another width have no latent for each latent',
    )


def check_mask(
  name: str, mask: Bool[ArrayLike, ' ...'], shape: tuple[int, ...]
) -> Bool[np.ndarray, ' ...']:
  """Returns a mask on the host.

  Raises:
    SAEError: not booleans, or another shape.
  """
  array = as_host(name, mask, SAEError)
  if array.dtype != bool or array.shape != shape:
    raise SAEError(
      f'{name} has shape {list(array.shape)} and dtype {array.dtype}; expected booleans {list(shape)}'
    )
  return array


def check_number(name: str, value: float, low: float, high: float) -> float:
  """Returns a number within [low, high].

  Raises:
    SAEError: not a number, or out of range.
  """
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not real or not low <= value <= high:
    raise SAEError(f'{name}={value!r}; expected a number from {low} to {high}')
  return float(value)


def check_count(name: str, value: int, minimum: int) -> int:
  """Returns a whole number.

  Raises:
    SAEError: not a whole number, or less than the minimum.
  """
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < minimum:
    raise SAEError(f'{name}={value!r} should be a whole number, at least {minimum}')
  return int(value)


def check_several(name: str, values: Sequence[Any], minimum: int) -> Sequence[Any]:
  """Returns a sequence of at least `minimum` items.

  Raises:
    SAEError: fewer, or one array or dictionary in place of several.
  """
  if isinstance(values, Mapping | str) or hasattr(values, 'shape') or not np.iterable(values):
    raise SAEError(f'{name}: {type(values).__name__} in place of a list')
  found = list(values)
  if len(found) < minimum:
    raise SAEError(f'{name}: {len(found)} given; expected at least {minimum}')
  return found


def unit_rows(rows: Shaped[np.ndarray, 'M D']) -> Float[np.ndarray, 'M D']:
  """Rows at length 1, in float64."""
  rows = rows.astype(np.float64)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)
