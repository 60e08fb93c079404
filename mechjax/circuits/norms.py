"""The norms of a model as affine maps, identified from outside.

A norm divides by a number that depends on its input. In one run on one prompt this number is known, and with it as a
constant the norm is affine (docs/methods.md, section 10):

    N(x) = gain * centre(x) * scale + bias          scale: one number for each position of the run

The code of an upstream model is not read. The function from the residual stream to the norm is cut out of the staged
program and evaluated at chosen inputs: at 0 it returns the bias, at a large constant the gain of an RMSNorm, at an
alternating input that of a LayerNorm, to which a constant is 0. An identity is recognised because it grows with its
input. Nothing is assumed: a norm is accepted only if the affine map reproduces the values of the run.

Sharp edge: values of 16 bits have too few digits for the test, and are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.errors import CircuitError

LARGE = 1024.0
"""Input at which the constant in a norm's root is negligible; a power of two, so that means are exact."""

TOLERANCE = 1e-5
"""Largest deviation of a reproduced value, relative to the largest value of its site."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NormMap:
  """Gain, bias and kind of a norm, or of the norms of all layers on a leading axis.

  Attributes:
    gain: factor of each coordinate, [..., D].
    bias: summand of each coordinate, [..., D].
    centred: 1 if the mean is subtracted first (LayerNorm), otherwise 0, [...].
  """

  gain: Float[Array, '*layers D']
  bias: Float[Array, '*layers D']
  centred: Float[Array, '*layers']

  def layer(self, index: Array | int) -> NormMap:
    """The norm of one layer."""
    return jax.tree.map(lambda x: x[index], self)

  def centre(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
    """Subtracts the mean if the norm does."""
    return x - self.centred * jnp.mean(x, -1, keepdims=True)

  def linear(self, x: Float[Array, '... D'], scale: Float[Array, ' ...']) -> Float[Array, '... D']:
    """The linear part, gain * centre(x) * scale."""
    return self.gain * self.centre(x) * scale[..., None]

  def transpose(
    self, cotangent: Float[Array, '... D'], scale: Float[Array, ' ...']
  ) -> Float[Array, '... D']:
    """The transpose of `linear`."""
    return self.centre(self.gain * cotangent * scale[..., None])


def identify(evaluate: Callable[[Array], Array], D: int, dtype: np.dtype) -> NormMap:
  """Finds gain, bias and kind of the norms of all layers.

  Args:
    evaluate: outputs of the norms at some inputs, [probes, D] to [probes, *layers, D].
    D: width.
    dtype: dtype of the inputs.

  Returns:
    A norm for each layer, or a single one.
  """
  ones = jnp.ones(D, dtype)
  signs = ones.at[1::2].set(-1)
  spread = signs - jnp.mean(signs)
  unit = spread * jax.lax.rsqrt(jnp.mean(spread**2))
  inputs = jnp.stack([0 * ones, ones, LARGE * ones, 2 * LARGE * ones, LARGE * signs])
  bias, *outputs = evaluate(inputs)
  small, large, larger, alternating = (x - bias for x in outputs)
  is_centred = _size(small) < 0.01 * _size(alternating)
  is_linear = _size(larger - 2 * large) < 0.01 * _size(large)
  gain = jnp.where(is_linear, large / LARGE, large)
  gain = jnp.where(is_centred, alternating / unit, gain)
  return NormMap(gain, bias, is_centred[..., 0].astype(dtype))


def _size(x: Array) -> Array:
  return jnp.max(jnp.abs(x), -1, keepdims=True)


def measure_scale(
  norm: NormMap, before: Float[Array, '*layers T D'], after: Float[Array, '*layers T D']
) -> tuple[Float[Array, '*layers T'], Array]:
  """Scales of a run, with which a norm reproduces its values, and how well it does.

  Args:
    norm: one norm, or those of all layers.
    before: input of the norm.
    after: its output.

  Returns:
    The scales, and the largest deviation relative to the largest value of the output.
  """
  gain, bias = norm.gain[..., None, :], norm.bias[..., None, :]
  many = NormMap(gain, bias, norm.centred[..., None, None])
  direction, target = gain * many.centre(before), after - bias
  square = jnp.sum(direction**2, -1)
  scale = jnp.sum(target * direction, -1) / jnp.where(square == 0, 1, square)
  return scale, deviation(direction * scale[..., None] + bias, after)


def deviation(found: Array | np.ndarray, expected: Array | np.ndarray) -> Array:
  """Largest difference relative to the largest expected value."""
  size = jnp.max(jnp.abs(expected), initial=0)
  return jnp.max(jnp.abs(found - expected), initial=0) / jnp.where(size == 0, 1, size)


def check_reproduced(name: str, what: str, error: float, dtype: np.dtype) -> None:
  """Checks that a map that was identified reproduces the values of a site.

  Raises:
    CircuitError: it does not, or a value is not finite.
  """
  if error <= tolerance_of(dtype):
    return
  known = np.isfinite(error)
  raise CircuitError(
    f'{name!r} is not a {what} that can be frozen: it is off by {error:.2g} of the largest value',
    where=name,
    cause='another function, or maps of other parameters'
    if known
    else 'NaN or infinity in the run',
  )


def tolerance_of(dtype: np.dtype) -> float:
  """Largest relative deviation that is accepted."""
  return TOLERANCE if precision.wide_dtype(dtype) == jnp.float32 else 1e-9
