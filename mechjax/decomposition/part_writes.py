"""The vectors that single heads and neurons write to the residual stream, through the norm after their matrix.

The output of an attention or of an MLP is a product with one matrix, so it is a sum over heads or neurons. In Gemma 2
and 3 a norm follows, whose scale r depends on all of them together; with r held at its value the sum is exact again:

    out = r g * (sum_i x_i W_i + bias)                      r = 1 without a norm, and g = 1

    weights = PartWeights.of(**take_part_weights(model.params, model.config))       from `mechjax.models.part_weights`
    part = split_part(weights.heads, z, attn_out)
    part.write(n_heads)                                                             [L, B, N, D], results of heads

r is found from out itself, without knowing the norm's eps, and the formula must then reproduce out: weights of another
layer, a forgotten bias or another kind of norm are refused.

Letters: L layers, B rows, D width, N heads, H head width, F neurons; I inputs of a matrix (N·H or F).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.decomposition.array_checks import as_common, check_arrays, check_count, check_finite
from mechjax.errors import CircuitError


@dataclasses.dataclass(frozen=True, eq=False)
class OutputWeights:
  """A matrix that writes to the stream, in every layer.

  Attributes:
    matrix: [L, I, D].
    bias: added to the product, [L, D]; None without one.
    gain: scale of an RMS norm that follows, as it is multiplied, [L, D]; None without a norm.
  """

  matrix: Float[ArrayLike, 'L I D']
  bias: Float[ArrayLike, 'L D'] | None
  gain: Float[ArrayLike, 'L D'] | None


@dataclasses.dataclass(frozen=True, eq=False)
class PartWeights:
  """Weights by which heads and neurons write to the stream; make one with `of`.

  Attributes:
    heads: W_O with the axes of heads and of their width as one.
    n_heads: N.
    neurons: W_out; None in a model of attention alone.
  """

  heads: OutputWeights
  n_heads: int
  neurons: OutputWeights | None

  @classmethod
  def of(
    cls,
    *,
    W_O: Float[ArrayLike, 'L N H D'],
    W_out: Float[ArrayLike, 'layers F D'] | None = None,
    attn_bias: Float[ArrayLike, 'L D'] | None = None,
    mlp_bias: Float[ArrayLike, 'layers D'] | None = None,
    attn_gain: Float[ArrayLike, 'L D'] | None = None,
    mlp_gain: Float[ArrayLike, 'layers D'] | None = None,
  ) -> PartWeights:
    """Checks weights.

    Args:
      W_O: output matrices of the heads.
      W_out: output matrices of the MLPs.
      attn_bias, mlp_bias: biases of these matrices.
      attn_gain, mlp_gain: scales of RMS norms after them.

    Raises:
      CircuitError: shapes that do not fit together.
    """
    sizes = check_arrays(
      {'W_O': (W_O, 'L N H D')} | _given('L D', attn_bias=attn_bias, attn_gain=attn_gain)
    )
    L, N, H, D = (sizes[letter] for letter in 'LNHD')
    heads = OutputWeights(jnp.reshape(W_O, (L, N * H, D)), attn_bias, attn_gain)
    if W_out is None:
      if mlp_bias is not None or mlp_gain is not None:
        raise CircuitError('mlp_bias or mlp_gain without W_out')
      return cls(heads, N, None)
    check_arrays(
      {'W_out': (W_out, 'L F D')} | _given('L D', mlp_bias=mlp_bias, mlp_gain=mlp_gain), {'D': D}
    )
    return cls(heads, N, OutputWeights(W_out, mlp_bias, mlp_gain))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PartWrites:
  """Outputs of a matrix as sums over its inputs.

  Attributes:
    inputs: [L, B, I].
    matrix: [L, I, D].
    gain: g, [L, D].
    scale: r, [L, B].
  """

  inputs: Float[Array, 'L B I']
  matrix: Float[Array, 'L I D']
  gain: Float[Array, 'L D']
  scale: Float[Array, 'L B']

  def write(self, n_parts: int) -> Float[Array, 'L B N D']:
    """Vectors that equal blocks of inputs write, such as the results of heads.

    Raises:
      CircuitError: a number of blocks that does not divide the inputs.
    """
    n, n_inputs = check_count('n_parts', n_parts), self.inputs.shape[-1]
    if n_inputs % n:
      raise CircuitError(f'{n_inputs} inputs are not a multiple of {n} parts')
    return _write(self, n)

  def attribute(self, directions: Float[Array, 'B D']) -> Float[Array, 'L B I']:
    """Products of the vector that each input writes with a direction of each row."""
    return _attribute(self, directions)


def split_part(
  weights: OutputWeights,
  inputs: Float[ArrayLike, 'L B I'],
  out: Float[ArrayLike, 'L B D'],
  limit: float = 1e-4,
  name: str = 'the output',
) -> PartWrites:
  """Writes the output of a matrix, and of the norm after it, as a sum over inputs.

  Args:
    weights: of the same layers.
    inputs: neurons, or outputs of heads before W_O, with their axes as one.
    out: output of the part, as it is added to the stream.
    limit: largest length of the difference, relative to that of the output.
    name: its name in messages.

  Raises:
    CircuitError: shapes that do not fit, NaN, or weights that do not give the output.
  """
  arrays = {
    'inputs': (inputs, 'L B I'),
    'output': (out, 'L B D'),
    'matrix': (weights.matrix, 'L I D'),
  }
  sizes = check_arrays(arrays)
  ones, zeros = np.ones((sizes['L'], sizes['D']), np.float32), np.zeros((), np.float32)
  x, y, W, bias, gain = as_common(
    inputs, out, weights.matrix,
    np.broadcast_to(zeros, ones.shape) if weights.bias is None else weights.bias,
    ones if weights.gain is None else weights.gain,
  )  # fmt: skip
  check_finite(f'{name} or its inputs', jnp.concatenate([x, y], -1))
  predicted, scale = _predict(x, W, bias, gain, y, weights.gain is not None)
  check_sum(
    f'{name} from its inputs', name, predicted, y, limit,
    'weights of another model or layer, a bias or gain that was left out, a planted value, LayerNorm after the matrix',
  )  # fmt: skip
  return PartWrites(x, W, gain, scale)


def check_sum(
  what: str,
  name: str,
  found: Float[Array, '*batch D'],
  given: Float[Array, '*batch D'],
  limit: float,
  cause: str,
) -> None:
  """Raises CircuitError unless vectors differ by at most `limit` of the length of the given ones.

  Args:
    what, name: names of the found and of the given ones in the message.
    found, given: the vectors.
    limit: largest relative length of the difference.
    cause: likely cause of a larger one.
  """
  gap, size = (np.asarray(x, np.float64) for x in _lengths(found, given))
  ratio = gap / np.where(size > 0, size, 1.0)
  if not ratio.size or ratio.max() <= limit:
    return
  at = ', '.join(str(int(i)) for i in np.unravel_index(ratio.argmax(), ratio.shape))
  raise CircuitError(
    f'{what} differs from {name} by {ratio.max():.3g} of its length, more than {limit:.3g}',
    where=f'[{at}] of {"layer, row" if ratio.ndim == 2 else "row"}',
    cause=cause,
  )


def _given(axes: str, **arrays: Float[ArrayLike, ' ...'] | None) -> dict:
  return {name: (x, axes) for name, x in arrays.items() if x is not None}


@jax.jit
def _lengths(found: Array, given: Array) -> tuple[Array, Array]:
  length = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), -1))  # noqa: E731
  return length(found - given), length(given)


@jax.jit
def _predict(
  x: Array, W: Array, bias: Array, gain: Array, out: Array, has_norm: Array
) -> tuple[Array, Array]:
  """r g * (x W + bias), and r."""
  raw = (precision.einsum('lbi,lid->lbd', x, W) + bias[:, None]) * gain[:, None]
  square = jnp.sum(raw * raw, -1)
  fitted = jnp.sum(raw * out, -1) / jnp.where(square > 0, square, 1)
  scale = jnp.where(has_norm, fitted, jnp.ones_like(fitted))
  return raw * scale[..., None], scale


@jax.jit
def _attribute(part: PartWrites, directions_BxD: Array) -> Array:
  there = directions_BxD * part.gain[:, None] * part.scale[..., None]
  return part.inputs * precision.einsum('lid,lbd->lbi', part.matrix, there)


def _write(part: PartWrites, n: int) -> Array:
  L, B, _ = part.inputs.shape
  x, W = part.inputs.reshape(L, B, n, -1), part.matrix.reshape(L, n, -1, part.matrix.shape[-1])
  return _write_blocks(x, W, part.gain, part.scale)


@jax.jit
def _write_blocks(x: Array, W: Array, gain: Array, scale: Array) -> Array:
  raw = precision.einsum('lbnh,lnhd->lbnd', x, W)
  return raw * gain[:, None, None] * scale[..., None, None]
