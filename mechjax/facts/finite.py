"""Checks of arrays of names, facts and neurons: each returns the array in float64 on the host, or raises a FactsError.

A statistic of a table with one NaN is NaN, or is wrong without notice where comparisons with NaN are False. An empty
table has a mean of 0/0. Both are found before anything is computed.

    post = as_table('post', post, 'names neurons')
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float64, Int, Int32, Shaped

from mechjax.errors import FactsError
from mechjax.host_arrays import as_host

Numbers = Shaped[ArrayLike, ' ...'] | Sequence
"""An array, or nested sequences of numbers."""


def as_table(name: str, x: Numbers, axes: str) -> Float64[np.ndarray, ' ...']:
  """Returns a table as float64 on the host.

  Args:
    name: its name in messages.
    x: the table: floating point, integers or booleans.
    axes: names of its axes, separated by spaces; a last '...' stands for any further axes.

  Raises:
    FactsError: other axes, an empty axis, a table of other things than real numbers, NaN or infinity; traced or masked
      arrays.
  """
  x = as_host(name, x, FactsError)
  names = axes.split()
  more = names[-1] == '...'
  least = len(names) - more
  ndim = np.ndim(x)
  if ndim < least or (ndim > least and not more):
    raise FactsError(
      f'{name} has shape {list(np.shape(x))}', hint=f'pass an array [{", ".join(names)}]'
    )
  if 0 in np.shape(x):
    raise FactsError(f'{name} is empty: its shape is {list(np.shape(x))}')
  if x.dtype.kind not in 'biu' and not jnp.issubdtype(x.dtype, jnp.floating):
    raise FactsError(f'{name} is not a table of numbers, but of {x.dtype}: {x.ravel()[:3]!r:.100}')
  table = x.astype(np.float64)
  check_finite(name, table)
  return table


def check_finite(name: str, x: Float[np.ndarray, ' ...']) -> None:
  """Raises FactsError for NaN or infinity; the message has the index of the first one."""
  bad = np.argwhere(~np.isfinite(x))
  if len(bad):
    at = [int(i) for i in bad[0]]
    raise FactsError(
      f'NaN or infinity in {name}: {x[tuple(at)]} at index {at}',
      cause='an activation overflowed, a token id beyond the vocabulary, or a mean over no tokens',
    )


def check_count(name: str, value: object, minimum: int) -> None:
  """Raises FactsError unless a setting is a whole number of at least a minimum."""
  whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not whole or value < minimum:  # type: ignore[operator]
    raise FactsError(f'{name}={value!r:.100}; expected a whole number, at least {minimum}')


def as_indices(
  name: str, x: Numbers, ndim: int, stop: int | None = None
) -> Int[np.ndarray, ' ...']:
  """Returns indices as int64.

  Args:
    name: their name in messages.
    x: the indices.
    ndim: number of axes.
    stop: one more than the largest index; None for any.

  Raises:
    FactsError: other axes, numbers that are not whole, none at all, or an index outside 0 to `stop` - 1.
  """
  found = as_host(name, x, FactsError)
  if found.ndim != ndim or not found.size or found.dtype.kind not in 'iu':
    raise FactsError(
      f'{name} has shape {list(found.shape)} and dtype {found.dtype}; expected whole numbers with {ndim} axes'
    )
  if found.min() < 0 or (stop is not None and found.max() >= stop):
    end = '' if stop is None else f' to {stop - 1}'
    raise FactsError(f'{name} has {found.min()} to {found.max()}; expected indices from 0{end}')
  return found.astype(np.int64)


def as_tokens(name: str, x: Numbers, ndim: int) -> Int32[np.ndarray, ' ...']:
  """Returns token ids as int32; errors as for `as_indices`, and for ids that int32 does not hold."""
  return as_indices(name, x, ndim, 2**31).astype(np.int32)
