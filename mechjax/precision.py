"""How precisely numbers are multiplied, and what they are added up in.

JAX's default for a product of float32 matrices is what the device is fastest at: passes of bfloat16 on a TPU, TF32 on
a GPU, either of which keeps a tenth of the digits. Effects of patches are differences of nearly equal logits, so all
products of float32 here ask for all digits, in their own parameters: a harvest or a gradient that goes over the program
again asks for the same.

    einsum('btd,dnh->btnh', h, w)        float32: HIGHEST; bfloat16: as ever, there is nothing to gain

Whoever wants speed says so with JAX's own setting, which counts wherever it is set:

    jax.config.update('jax_default_matmul_precision', 'tensorfloat32')

`wide` is the other half: norms, softmax and logits are computed in float32, or in float64 where the parameters are.

Sharp edges: on a CPU the setting changes no number. What a user's own code multiplies is the user's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors

DTYPES = ('float64', 'float32', 'bfloat16', 'float16')
"""What parameters can be made of."""


def of(*operands: Any) -> jax.lax.Precision | None:
  """The precision to ask for in a product of some arrays; None to leave it to JAX's setting."""
  if _is_set():
    return None
  exact = any(jnp.dtype(x.dtype).itemsize >= 4 for x in operands)
  return jax.lax.Precision.HIGHEST if exact else None


def einsum(equation: str, *operands: jax.Array, **options: Any) -> jax.Array:
  """`jnp.einsum`."""
  return jnp.einsum(equation, *operands, precision=of(*operands), **options)


def matmul(a: jax.Array, b: jax.Array, **options: Any) -> jax.Array:
  """`jnp.matmul`."""
  return jnp.matmul(a, b, precision=of(a, b), **options)


@contextlib.contextmanager
def highest() -> Iterator[None]:
  """The same for products in somebody else's code that says nothing of their precision, while it is traced."""
  if _is_set():
    yield
  else:
    with jax.default_matmul_precision('highest'):
      yield


def _is_set() -> bool:
  """Whether the user has chosen a precision, for the process or around this code."""
  return jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]


def wide_dtype(dtype: Any) -> np.dtype:
  """In what norms, softmax and logits of values of a dtype are computed: float32, or the dtype if it is wider."""
  return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def wide(x: jax.Array) -> jax.Array:
  """An array of floating point in `wide_dtype`."""
  return x.astype(wide_dtype(x.dtype))


def check_dtype(dtype: Any) -> np.dtype:
  """A dtype for parameters.

  Args:
    dtype: what a user asks for.

  Raises:
    MechjaxError: it is none of `DTYPES`; or it is float64, which JAX has not been told to compute in.
  """
  try:
    found = None if dtype is None else jnp.dtype(dtype)  # NumPy takes None for float64
  except TypeError:
    found = None
  if found is None or found.name not in DTYPES:
    raise errors.MechjaxError(
      f'dtype={dtype!r} for parameters', hint=f'one of {", ".join(DTYPES)}: integers would be zeros'
    )
  if found == jnp.float64 and jnp.zeros(0).dtype != jnp.float64:
    raise errors.MechjaxError(
      f'dtype={"float, which is " if dtype is float else ""}float64, and JAX computes in float32',
      hint="'float32'; or jax.config.update('jax_enable_x64', True) before anything else",
    )
  return found
