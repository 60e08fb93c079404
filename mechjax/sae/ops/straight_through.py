"""Straight-through derivatives for a threshold: estimates of its effect on the loss.

The loss of a JumpReLU dictionary jumps where a pre-activation crosses its threshold, so its derivative with respect
to the threshold is zero almost everywhere and useless. The derivative of the EXPECTED loss can be estimated, with a
kernel K of width eps around the threshold (Rajamanoharan et al. 2024, "Jumping Ahead", section 3 and
equations 11 and 12; docs/methods.md, section 4.3; K(u) = 1[|u| < 1/2]):

    H(z - t)          dH/dz := 0                 dH/dt    := -(1/eps) K((z - t)/eps)
    z * H(z - t)      d/dz  := 1[z > t]          d/dt     := -(t/eps) K((z - t)/eps)

Both are custom JVPs, so they support forward mode, reverse mode and vmap.

Sharp edges: z is the PRE-activation. With thresholded activations instead, every z below the threshold would be 0 and
the lower half of the kernel empty. A bandwidth is in units of z: 1e-3 is meant for inputs with E|x|^2 = 1. The
bandwidth itself has no derivative.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def above(z: jax.Array, threshold: jax.Array | float, value: jax.Array | None = None) -> jax.Array:
  """Values where z is above a threshold, and 0 elsewhere; NaN where z or the threshold is NaN.

  Args:
    z: compared with the threshold, [..., M].
    threshold: [M], or one for all.
    value: [..., M]; None for z.
  """
  elsewhere = jnp.where(z <= threshold, 0, jnp.nan)
  return jnp.where(z > threshold, z if value is None else value, elsewhere)


@jax.custom_jvp
def heaviside(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
  """H(z - threshold): 1 above the threshold, else 0.

  Args:
    z: pre-activations, [..., M].
    threshold: [M], at least 0.
    bandwidth: eps, the width of the kernel.

  Returns:
    Zeros and ones of the dtype of z, [..., M].
  """
  # Values above a threshold are positive. Written so, it needs no array in addition to that of `jumprelu`.
  return jnp.sign(above(z, threshold))


@heaviside.defjvp
def _heaviside_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
  z, threshold, bandwidth = primals
  return heaviside(z, threshold, bandwidth), -_slope(z, threshold, bandwidth) * tangents[1]


@jax.custom_jvp
def jumprelu(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
  """z * H(z - threshold): the identity above the threshold, else 0.

  Args:
    z: pre-activations, [..., M].
    threshold: [M], at least 0.
    bandwidth: eps, the width of the kernel.

  Returns:
    Activations, [..., M].
  """
  return above(z, threshold)


@jumprelu.defjvp
def _jumprelu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
  z, threshold, bandwidth = primals
  through_z = jnp.where(z > threshold, tangents[0], 0)
  moved = threshold * tangents[1]
  return jumprelu(z, threshold, bandwidth), through_z - _slope(z, threshold, bandwidth) * moved


def _slope(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
  """K((z - threshold)/eps) / eps: one array for both functions, which occur together in every loss."""
  return jnp.where(_near(z, threshold, bandwidth), 1 / bandwidth, 0).astype(z.dtype)


def _near(z: jax.Array, threshold: jax.Array, bandwidth: float) -> jax.Array:
  """K((z - threshold)/eps) as booleans."""
  return jnp.abs(z - threshold) < bandwidth / 2
