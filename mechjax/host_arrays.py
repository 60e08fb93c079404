"""Arguments that enter as arrays on the host, and seeds: what NumPy would change or fail on is refused with a message.

`np.asarray` accepts more than it should. It drops the mask of a masked array, so that masked values count; it makes the
text 'nan' of a missing label; and where it fails, within `jit` or for rows of different lengths, its error names
neither the argument nor a remedy. All checks of arguments that are computed on the host begin here:

    x = as_host('features', features, ProbingError)
    check_seed(seed, FactsError)

Sharp edge: a seed of None would be another random number at every call, and a result that cannot be computed again.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from mechjax.errors import MechjaxError


def as_host(name: str, x: Any, error: type[MechjaxError]) -> Shaped[np.ndarray, ' ...']:
  """Returns an argument as an array on the host, in its own dtype.

  Args:
    name: its name in messages.
    x: an array, or nested sequences of numbers or texts.
    error: class of the error.

  Raises:
    MechjaxError: of the class `error`, for traced values, masked arrays, and rows of different lengths.
  """
  if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
    return x
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x)):
    raise error(
      f'{name}: the value is traced, and this is computed on the host',
      cause='a call inside jit, vmap or grad',
      hint='call it outside of these, with concrete arrays',
    )
  if isinstance(x, np.ma.MaskedArray):
    raise error(
      f'{name}: a masked array of shape {list(x.shape)}, whose masked values would count',
      hint='leave masked rows out, x[~mask]; or x.filled(value), if a value is meant',
    )
  try:
    return np.asarray(x)
  except (TypeError, ValueError) as e:
    raise error(
      f'{name}: {x!r:.100} is not an array',
      cause='rows of different lengths, or entries that are neither numbers nor texts',
    ) from e


def check_seed(seed: Any, error: type[MechjaxError], name: str = 'seed') -> int:
  """Returns a seed.

  Raises:
    MechjaxError: of the class `error`, unless it is a whole number of at least 0.
  """
  try:
    found = -1 if isinstance(seed, bool) else operator.index(seed)
  except TypeError:
    found = -1
  if found < 0:
    raise error(
      f'{name}={seed!r:.100}; expected a whole number, at least 0',
      hint='the same seed gives the same results; keys of JAX are not seeds',
    )
  return found
