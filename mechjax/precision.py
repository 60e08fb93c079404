"""Precision of matrix products, and the dtype of norms, softmax and logits.

JAX's default for a product of float32 matrices is the fastest mode of the device: passes of bfloat16 on a TPU, TF32 on
a GPU, either of which keeps a tenth of the digits. Effects of patches are differences of nearly equal logits, so all
products of float32 in mechjax request full precision, as a parameter of the product: a harvest or a gradient of the
program keeps it.

    einsum('btd,dnh->btnh', h, w)        float32: HIGHEST; bfloat16: the default, as there is nothing to gain

To trade precision for speed, set JAX's own option, which takes precedence wherever it is set:

    jax.config.update('jax_default_matmul_precision', 'tensorfloat32')

`wide` converts to the dtype of norms, softmax and logits: float32, or float64 where the parameters are float64.

Sharp edges: on a CPU the setting changes no result. Products in a user's own code are left as they are.
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
"""Dtypes that parameters can have."""


def of(*operands: Any) -> jax.lax.Precision | None:
  """The precision to request for a product of some arrays; None to leave it to JAX's setting."""
  if _is_set():
    return None
  exact = any(jnp.dtype(x.dtype).itemsize >= 4 for x in operands)
  return jax.lax.Precision.HIGHEST if exact else None


def einsum(equation: str, *operands: jax.Array, **options: Any) -> jax.Array:
  """`jnp.einsum` at the precision `of` its operands."""
  return jnp.einsum(equation, *operands, precision=of(*operands), **options)


def matmul(a: jax.Array, b: jax.Array, **options: Any) -> jax.Array:
  """`jnp.matmul` at the precision `of` its operands."""
  return jnp.matmul(a, b, precision=of(a, b), **options)


@contextlib.contextmanager
def highest() -> Iterator[None]:
  """Requests full precision for products in upstream code that sets no precision, while it is traced."""
  if _is_set():
    yield
  else:
    with jax.default_matmul_precision('highest'):
      yield


def _is_set() -> bool:
  """Whether the user has chosen a precision, for the process or around this code."""
  return jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]


def wide_dtype(dtype: Any) -> np.dtype:
  """Dtype of norms, softmax and logits of values of a dtype: float32, or the dtype if it is wider."""
  return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def wide(x: jax.Array) -> jax.Array:
  """Converts a floating-point array to its `wide_dtype`."""
  return x.astype(wide_dtype(x.dtype))


def check_dtype(dtype: Any) -> np.dtype:
  """Checks a dtype for parameters, and returns it as a NumPy dtype.

  Args:
    dtype: the dtype that the user asked for.

  Raises:
    MechjaxError: the dtype is not in `DTYPES`; or it is float64, and x64 is not enabled in JAX.
  """
  try:
    found = None if dtype is None else jnp.dtype(dtype)  # NumPy takes None for float64
  except TypeError:
    found = None
  if found is None or found.name not in DTYPES:
    near = errors.nearest(f'{dtype}', DTYPES, 1) if found is None else []
    integers = found is not None and not jnp.issubdtype(found, jnp.inexact)
    raise errors.MechjaxError(
      f'dtype={dtype!r} for parameters',
      cause='parameters are fractions, which integers cannot hold' if integers else None,
      hint=f'did you mean {near[0]!r}?' if near else f'one of {", ".join(DTYPES)}',
    )
  if found == jnp.float64 and jnp.zeros(0).dtype != jnp.float64:
    raise errors.MechjaxError(
      f'dtype={"float, which is " if dtype is float else ""}float64, and JAX computes in float32',
      hint="'float32'; or jax.config.update('jax_enable_x64', True) before anything else",
    )
  return found
