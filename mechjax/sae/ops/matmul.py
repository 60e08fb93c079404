"""Matrix products, in float32 or with operands rounded to bfloat16.

An accelerator multiplies bfloat16 many times as fast as float32. Only the OPERANDS of a product are safe to round:
parameters, latents, losses and all sums stay float32, and so does the sum inside a product.

    product(x, W, 'bfloat16')       round(x) @ round(W), float32; in the backward pass the cotangent is rounded too

The last point requires a custom differentiation rule: JAX's rule would multiply a float32 cotangent with bfloat16
operands, as a float32 product. The values kept for the backward pass are rounded too, and take half the memory.

Sharp edges: bfloat16 supports reverse mode only. Nothing is scaled: bfloat16 has the exponents of float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mechjax import precision

MATMULS = {'float32': None, 'bfloat16': jnp.bfloat16}


def product(a: jax.Array, b: jax.Array, matmuls: str) -> jax.Array:
  """a @ b.

  Args:
    a: [..., I].
    b: [I, J].
    matmuls: the precision of operands, one of `MATMULS`.

  Returns:
    [..., J]; float32 for bfloat16 operands.
  """
  return precision.matmul(a, b) if MATMULS[matmuls] is None else _bfloat16_product(a, b)


def offset_product(x: jax.Array, centre_D: jax.Array, W: jax.Array, matmuls: str) -> jax.Array:
  """(x - centre) @ W, whose derivative with respect to the centre is W times a sum over tokens.

  The chain rule through x - centre would add a sixth matrix product to a training step that needs five, and only its
  sum over tokens would be used. So the centre is differentiated in a second term, of one row and value zero.

  Args:
    x: [..., D].
    centre_D: vector to subtract.
    W: [D, M].
    matmuls: the precision of operands.
  """
  fixed_D = lax.stop_gradient(centre_D)
  moved_D = centre_D - fixed_D
  return product(x - fixed_D, W, matmuls) - product(moved_D, lax.stop_gradient(W), matmuls)


def operand(a: jax.Array, matmuls: str) -> jax.Array:
  """Rounds an operand of a product."""
  dtype = MATMULS[matmuls]
  return a if dtype is None else a.astype(dtype)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b for rounded operands; products of bfloat16 are summed in float32."""
  total = jnp.float32 if a.dtype == jnp.bfloat16 else a.dtype
  return precision.matmul(a, b, preferred_element_type=total)


@jax.custom_vjp
def _bfloat16_product(a: jax.Array, b: jax.Array) -> jax.Array:
  return dot(operand(a, 'bfloat16'), operand(b, 'bfloat16'))


def _bfloat16_fwd(a, b):
  a, b = operand(a, 'bfloat16'), operand(b, 'bfloat16')
  return dot(a, b), (a, b)


def _bfloat16_bwd(kept, g):
  a, b = kept
  g = operand(g, 'bfloat16')
  rows = lambda c: c.reshape(-1, c.shape[-1])  # noqa: E731
  return dot(g, b.T), dot(rows(a).T, rows(g))


_bfloat16_product.defvjp(_bfloat16_fwd, _bfloat16_bwd)
