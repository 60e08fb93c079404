"""Fingerprints: short digests that distinguish weights from other weights, and a function from another function.

A result in a file has to record what it was computed from. The bits of weights are summed on their devices, so that no
array is copied to the host; the sums are integers, and the same on any devices. The fingerprint of a function covers
its bytecode, the names and constants that it uses, and the numbers, strings, arrays, containers, functions and objects
that it closes over; that of a callable object covers its `__call__` and its attributes.

Sharp edges: bytecode depends on the Python version, so a user's function has another fingerprint under another version;
functions of mechjax, and objects of mechjax, JAX and NumPy other than arrays, are identified by name. Values that a
function reads from its module (globals) are not included.
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
  """Fingerprint of parameters, 16 hexadecimal digits; the same on any devices."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  sums = jax.device_get(_sums_of_bits([leaf for _, leaf in leaves]))
  metadata = [(jax.tree_util.keystr(path), np.shape(x), str(x.dtype)) for path, x in leaves]
  return hashlib.sha256(repr((metadata, [s.tolist() for s in sums])).encode()).hexdigest()[:16]


def of_code(*functions: Callable) -> str:
  """Fingerprint of functions, 16 hexadecimal digits."""
  return hashlib.sha256(repr([_describe(f, ()) for f in functions]).encode()).hexdigest()[:16]


@jax.jit
def _sums_of_bits(leaves: list[jax.Array]) -> list[jax.Array]:
  """Sums of the bits of each array as integers, plain and weighted by place, modulo 2**32: uint32 [2]."""

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
  """Description of a function or of a value that it closes over, without addresses; `seen` ends cycles."""
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
  wrapped = getattr(x, '__wrapped__', None)  # set by jax.jit and functools.wraps
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
  """Values that the function closes over; None for a cell that is still empty."""
  found = []
  for cell in function.__closure__ or ():
    try:
      found.append(cell.cell_contents)
    except ValueError:
      found.append(None)
  return found
