"""Checks of vectors, coefficients and activations of steering: each raises a SteeringError that contains the value.

A vector with one NaN makes every logit NaN, and one of the wrong layer's width fails deep inside a model. Both are
found here, before anything runs. Values that are traced are not known yet, and pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from mechjax.errors import SteeringError


def is_traced(x: object) -> bool:
  """Whether the numbers of an array are not known yet."""
  return isinstance(x, jax.core.Tracer)


def check_vector(
  name: str, vector: Float[ArrayLike, '*n D'], ndims: tuple[int, ...]
) -> Float[Array, '*n D']:
  """Returns a vector as an array of JAX.

  Args:
    name: its name in messages.
    vector: the vector, or one at each position.
    ndims: allowed numbers of axes.

  Raises:
    SteeringError: not floating-point, another number of axes, no numbers; NaN, infinity, or nothing but zeros.
  """
  dtype = getattr(vector, 'dtype', None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or np.ndim(vector) not in ndims:
    raise SteeringError(
      f'{name} has shape {np.shape(vector)} and type {dtype or type(vector).__name__}',
      cause=f'expected a floating-point array with {" or ".join(map(str, ndims))} axes',
      hint='[D] for one vector; [n, D] for another one at each of n positions',
    )
  if not is_traced(vector):
    check_finite(name, vector)
    if not np.asarray(vector, np.float64).any():
      raise SteeringError(
        f'{name} is zero, so that it changes nothing',
        cause='two prompts or texts with the same activations, or latents that are not active',
      )
  return jnp.asarray(vector)


def check_finite(name: str, x: Shaped[ArrayLike, ' ...']) -> None:
  """Raises SteeringError for NaN or infinity."""
  if not np.isfinite(np.asarray(x, np.float64)).all():
    raise SteeringError(
      f'{name} contains NaN or infinity',
      cause='an activation overflowed, or a mean over no tokens, or the columns of padding were not left out',
    )


def check_number(name: str, value: ArrayLike) -> Float[Array, '']:
  """Returns a number, which may be traced, as an array of JAX.

  Raises:
    SteeringError: not one real number, or not finite.
  """
  single = np.ndim(value) == 0 and not isinstance(value, str | None)
  dtype = jnp.result_type(value) if single else np.dtype(object)
  if not jnp.issubdtype(dtype, jnp.integer) and not jnp.issubdtype(dtype, jnp.floating):
    raise SteeringError(f'{name}={value!r:.100}; expected one number')
  if not is_traced(value):
    check_finite(name, value)
  if jnp.issubdtype(dtype, jnp.floating) and hasattr(value, 'dtype'):
    return jnp.asarray(value)
  return jnp.asarray(value, jnp.result_type(float))


def check_layer(layer: object) -> None:
  """Raises SteeringError unless a layer is None or one whole number, which may be traced."""
  if layer is None:
    return
  dtype = getattr(layer, 'dtype', None) or np.result_type(type(layer))
  if isinstance(layer, bool) or np.ndim(layer) or not jnp.issubdtype(dtype, jnp.integer):  # type: ignore[arg-type]
    raise SteeringError(f'layer={layer!r:.100}; expected the number of one layer')


def check_pair(
  plus: Float[ArrayLike, ' ...'], minus: Float[ArrayLike, ' ...'], ndim: int, axes: str
) -> tuple[Float[np.ndarray, ' ...'], Float[np.ndarray, ' ...']]:
  """Returns activations of two prompts or sides, which have one shape, in float64 on the host.

  Args:
    plus, minus: the activations.
    ndim: number of axes.
    axes: their letters, for messages.

  Raises:
    SteeringError: other axes, two shapes, no numbers, NaN or infinity.
  """
  shapes = np.shape(plus), np.shape(minus)
  if shapes[0] != shapes[1] or len(shapes[0]) != ndim or 0 in shapes[0]:
    raise SteeringError(
      f'activations of shapes {shapes[0]} and {shapes[1]}; expected two of one shape {axes}',
      cause='prompts of different lengths, or a batch in place of one prompt',
      hint='Pair.of pads two prompts to one length; acts[0] is the first row of a batch',
    )
  for name, x in (('plus', plus), ('minus', minus)):
    check_finite(f'the activations of {name}', x)
  return np.asarray(plus, np.float64), np.asarray(minus, np.float64)
