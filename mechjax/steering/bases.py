"""Orthonormal bases of directions, and their removal from activations.

Two directions that are not orthogonal cannot be removed one after the other: the second subtraction brings a part of
the first one back. All removals therefore go through an orthonormal basis Q of the span, x - (x Q^T) Q, for one
direction as for many.

The basis is computed on the host in float64: it is needed once per edit, and whether vectors are dependent must not
depend on the rounding of a device. The removal runs inside the model and may be traced.

Sharp edges: Q has the span of the vectors, not the vectors; its first row is the first vector at length 1. A vector
that lies in the span of others is an error and not dropped, since the count of removed directions is a result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.errors import SteeringError
from mechjax.steering.checks import check_vector

DEPENDENT = {'float32': 1e-5, 'float64': 1e-12}
"""Part of a unit vector that lies outside the span of the vectors before it: below this they count as dependent.
About a hundred roundings of the dtype that the vectors came in."""


def orthonormal_basis(
  vectors_nxD: Float[Array | np.ndarray, 'n D'],
) -> Float[Array, 'n D']:
  """Orthonormal basis of the span of some vectors, by QR of their rows.

  Args:
    vectors_nxD: the vectors, [n, D]; concrete. No rows give an empty basis.

  Returns:
    Q [n, D] with Q Q^T = I, in float32 or wider; row i lies in the span of the first i + 1 vectors and has a positive
    product with vector i.

  Raises:
    SteeringError: not a matrix; NaN or infinity; a row of zeros; rows that are linearly dependent.
  """
  dtype = _check_matrix(vectors_nxD)
  rows = np.asarray(vectors_nxD, np.float64)
  _check_rows(rows)
  # Lengths near the limits of float64 do not overflow.
  scaled = rows / np.abs(rows).max(1, keepdims=True, initial=0)
  unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
  if len(unit) > unit.shape[1]:
    raise SteeringError(f'{len(unit)} vectors of width {unit.shape[1]} are linearly dependent')
  q_Dxn, r_nxn = np.linalg.qr(unit.T)
  outside = np.diagonal(r_nxn)
  _check_independent(np.abs(outside), DEPENDENT[dtype.name])
  return jnp.asarray(np.where(outside < 0, -q_Dxn, q_Dxn).T, dtype)


def remove(
  x: Float[Array, '*batch D'], Q_nxD: Float[Array | np.ndarray, 'n D']
) -> Float[Array, '*batch D']:
  """Removes the span of an orthonormal basis: x - (x Q^T) Q.

  Args:
    x: activations [..., D].
    Q_nxD: the basis, [n, D], of `orthonormal_basis`; may be traced.

  Returns:
    [..., D] in the dtype of `x`, computed in float32 or wider; `x` itself for an empty basis.

  Raises:
    SteeringError: a basis of another width than the activations.
  """
  if np.ndim(Q_nxD) != 2 or np.shape(Q_nxD)[-1] != np.shape(x)[-1]:
    raise SteeringError(
      f'a basis of shape {np.shape(Q_nxD)} for activations of shape {np.shape(x)}',
      cause='directions of another model or of another site',
      hint='pass Q [n, D] with the width D of the activations',
    )
  if not np.shape(Q_nxD)[0]:
    return x
  x = jnp.asarray(x)
  Q_nxD = jnp.asarray(Q_nxD)
  dtype = jnp.promote_types(precision.wide_dtype(x.dtype), Q_nxD.dtype)
  wide, Q_nxD = x.astype(dtype), Q_nxD.astype(dtype)
  part = precision.einsum('...n,nd->...d', precision.einsum('...d,nd->...n', wide, Q_nxD), Q_nxD)
  return (wide - part).astype(x.dtype)


def normalise(direction: Float[Array | np.ndarray, '*batch D']) -> Float[Array, '*batch D']:
  """Directions [..., D] at length 1, in float32 or wider.

  Raises:
    SteeringError: a direction of zeros, NaN or infinity; not detected if the directions are traced.
  """
  shape, dtype = np.shape(direction), getattr(direction, 'dtype', None)
  if not shape or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise SteeringError(
      f'a direction is a floating-point vector [D], not {dtype or type(direction).__name__}{list(shape)}'
    )
  if isinstance(direction, np.ndarray):  # in float64, which holds lengths that float32 does not
    rows = direction.astype(np.float64)
    _check_rows(rows.reshape(-1, shape[-1]))
    scaled = rows / np.abs(rows).max(-1, keepdims=True)
    unit = scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)
    return jnp.asarray(unit, precision.wide_dtype(jax.dtypes.canonicalize_dtype(dtype)))
  if not isinstance(direction, jax.core.Tracer):
    _check_rows(np.asarray(direction, np.float64).reshape(-1, shape[-1]))
  wide = precision.wide(jnp.asarray(direction))
  scaled = wide / jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
  return scaled / jnp.linalg.norm(scaled, axis=-1, keepdims=True)


def as_unit(direction: Float[Array | np.ndarray, ' D']) -> Float[Array, ' D']:
  """One direction at length 1; what was in float64 keeps a length that float32 does not hold until it is divided.

  Raises:
    SteeringError: not a floating-point vector [D]; zeros, NaN or infinity, as far as it is known.
  """
  check_vector('the direction', direction, (1,))
  return normalise(direction)


def _check_matrix(vectors: Float[Array | np.ndarray, 'n D']) -> np.dtype:
  """Dtype of the basis of a matrix; raises SteeringError for anything else."""
  shape, dtype = np.shape(vectors), getattr(vectors, 'dtype', None)
  if len(shape) != 2 or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise SteeringError(
      f'vectors of shape {shape} and type {dtype or type(vectors).__name__} are not a matrix of directions',
      hint='pass a floating-point array [n, D]; r[None] for one direction',
    )
  return precision.wide_dtype(jax.dtypes.canonicalize_dtype(dtype))


def _check_rows(rows_nxD: Float[np.ndarray, 'n D']) -> None:
  """Raises SteeringError for rows that have no direction."""
  bad = np.flatnonzero(~np.isfinite(rows_nxD).all(1))
  if len(bad):
    raise SteeringError(
      f'direction {bad[0]} contains NaN or infinity',
      cause='an activation overflowed, or a mean over no tokens',
    )
  zero = np.flatnonzero(~rows_nxD.any(1))
  if len(zero):
    raise SteeringError(
      f'direction {zero[0]} is zero: it points nowhere',
      cause='the difference of two equal means, or a position that every prompt has in common',
    )


def _check_independent(outside_n: Float[np.ndarray, ' n'], least: float) -> None:
  """Raises SteeringError for a row that lies in the span of the rows before it."""
  inside = np.flatnonzero(outside_n < least)
  if len(inside):
    raise SteeringError(
      f'vector {inside[0]} lies in the span of the vectors before it: only {outside_n[inside[0]]:.1e} of its length '
      f'lies outside',
      cause='the same direction twice, or a sum of the others',
      hint='leave it out: removing the others removes it',
    )
