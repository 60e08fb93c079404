"""Fingerprints: short digests that tell weights from other weights, and a function from another function.

A result that is kept in a file has to know what it was computed from. Weights are summed up where they are, bit by
bit, so that no array leaves its device; the sums are integers, and the same on any devices. A function is its bytecode,
the names and constants that it uses, and the numbers, strings, arrays, containers, functions and objects that it
closes over; a callable object is its `__call__` and its attributes.

Sharp edges: bytecode belongs to one Python version, so that a user's function has another fingerprint under the next
one; functions of mechjax, and objects of mechjax, JAX and NumPy that are no arrays, go by their names. What a function
finds in its module (globals) is not looked into.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_weights(params: Any) -> str:
  """What tells these parameters from all others, 16 hexadecimal digits; the same on any devices."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  sums = jax.device_get(_sums_of_bits([leaf for _, leaf in leaves]))
  metadata = [(jax.tree_util.keystr(path), np.shape(x), str(x.dtype)) for path, x in leaves]
  return hashlib.sha256(repr((metadata, [s.tolist() for s in sums])).encode()).hexdigest()[:16]


def of_code(*functions: Callable) -> str:
  """What tells these functions from others, 16 hexadecimal digits."""
  return hashlib.sha256(repr([_describe(f, ()) for f in functions]).encode()).hexdigest()[:16]


@jax.jit
def _sums_of_bits(leaves: list[jax.Array]) -> list[jax.Array]:
  """Of each array the sum of its bits as integers, plain and weighted by place, modulo 2**32: uint32 [2]."""

  def sums(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    elif jnp.iscomplexobj(x):
      x = jnp.stack([x.real, x.imag])
    elif x.dtype == bool:
      x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * min(x.dtype.itemsize, 4)}'))
    flat = bits.reshape(-1).astype(jnp.uint32)
    odd = 2 * jnp.arange(flat.size, dtype=jnp.uint32) + 1
    return jnp.stack([jnp.sum(flat, dtype=jnp.uint32), jnp.sum(flat * odd, dtype=jnp.uint32)])

  return [sums(x) for x in leaves]


def _describe(x: Any, seen: tuple[int, ...]) -> Any:
  """What is told of a function or of what it closes over, free of addresses; `seen` ends circles."""
  if id(x) in seen:
    return 'again'
  describe = functools.partial(_describe, seen=(*seen, id(x)))
  if isinstance(x, str | bytes | int | float | complex | None):
    return repr(x)
  if isinstance(x, tuple | list):
    return [describe(item) for item in x]
  if isinstance(x, frozenset | set):
    return sorted(repr(describe(item)) for item in x)
  if isinstance(x, dict):
    return [(describe(key), describe(item)) for key, item in x.items()]
  if isinstance(x, types.CodeType):
    return x.co_code, x.co_names, describe(x.co_consts)
  if isinstance(x, functools.partial):
    return describe(x.func), describe(x.args), describe(sorted(x.keywords.items()))
  if isinstance(x, types.MethodType):
    return describe(x.__func__), describe(x.__self__)
  if isinstance(x, types.FunctionType) and _is_users(x):
    cells = [describe(cell) for cell in _contents(x)]
    return (
      describe(x.__code__),
      cells,
      describe(x.__defaults__),
      describe(sorted((x.__kwdefaults__ or {}).items())),
    )
  if isinstance(x, np.ndarray | np.generic | jax.Array) and not isinstance(x, jax.core.Tracer):
    return x.shape, str(x.dtype), hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
  wrapped = getattr(x, '__wrapped__', None)  # what jax.jit and functools.wraps leave
  kind = x if hasattr(x, '__qualname__') else type(x)
  held = None
  if kind is not x and _is_users(kind):
    calls = [vars(base)['__call__'] for base in kind.__mro__ if '__call__' in vars(base)]
    held = calls[:1], dict(getattr(x, '__dict__', {}))
  return kind.__module__, kind.__qualname__, describe(wrapped), describe(held)


def _is_users(x: Any) -> bool:
  return (x.__module__ or '').partition('.')[0] not in (
    'mechjax',
    'jax',
    'jaxlib',
    'numpy',
    'builtins',
  )


def _contents(function: types.FunctionType) -> list[Any]:
  """What the function closes over; a cell that is still empty has nothing to tell."""
  found = []
  for cell in function.__closure__ or ():
    try:
      found.append(cell.cell_contents)
    except ValueError:
      found.append(None)
  return found
