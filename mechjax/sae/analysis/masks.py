"""Tokens that an analysis leaves out: the first of a context, and those with activations far longer than the rest.

In many models attention rests on a few tokens whose activations are a hundred times as long as all others: the first of
a text, and some delimiters (Sun et al. 2024, "Massive activations in large language models"). Sums of squares over
tokens are then sums over these few. `store.scales` measures a limit for them.

    kept = mask_tokens(x, kept, first=200, limit=scale.limit)
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int64, Num

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.analysis.checks import check_count, check_floats, check_mask


def mask_tokens(
  x: Float[np.ndarray | Array, 'B T D'],
  kept: Bool[np.ndarray | Array, 'B T'],
  first: int = 0,
  limit: float = np.inf,
) -> Bool[np.ndarray, 'B T']:
  """Tokens of `kept` without the first of each context and without those that are too long.

  Args:
    x: activations, one context in each row.
    kept: tokens that count, without padding and special tokens.
    first: number of kept tokens at the beginning of each context to leave out; 200 in Engels et al. 2024.
    limit: largest norm of an activation.

  Raises:
    SAEError: a mask of another shape, or a limit that is not positive.
  """
  mask = check_tokens(x, kept)
  late = np.cumsum(mask, 1) > check_count('first', first, 0)
  if not limit > 0:
    raise SAEError(f'limit={limit!r} is not a norm', hint='a positive number, or inf for no limit')
  if limit == np.inf:
    return mask & late
  short = np.linalg.norm(np.asarray(x, np.float64), axis=-1) <= limit
  return mask & late & short


def check_tokens(
  x: Float[np.ndarray | Array, 'B T D'], kept: Bool[np.ndarray | Array, 'B T']
) -> Bool[np.ndarray, 'B T']:
  """Returns the mask of activations.

  Raises:
    SAEError: activations with other axes than [B, T, D], or a mask of another shape.
  """
  if np.ndim(x) != 3:
    raise SAEError(
      f'activations of shape {np.shape(x)}; expected [B, T, D]', hint='one context in each row'
    )
  return check_mask('kept', kept, np.shape(x)[:2])


def select_vectors(
  name: str, x: Float[np.ndarray | Array, 'B T D'], mask: Bool[np.ndarray, 'B T']
) -> Float[np.ndarray, 'n D']:
  """Activations of the tokens that count, in their own dtype.

  Raises:
    SAEError: not floating-point, other tokens than the mask, NaN or infinity at a token that counts.
  """
  array = as_host(name, x, SAEError)
  if array.ndim != 3 or array.shape[:2] != mask.shape:
    raise SAEError(
      f'{name} has shape {list(array.shape)}, the mask {list(mask.shape)}; expected [B, T, D] and [B, T]'
    )
  rows = array[mask]
  return check_floats(name, rows, 'n D') if len(rows) else rows


def select_numbers(
  name: str, value: Num[np.ndarray | Array, 'B T'], mask: Bool[np.ndarray, 'B T']
) -> Float64[np.ndarray, ' n']:
  """Numbers of the tokens that count, in float64.

  Raises:
    SAEError: another shape than the mask, or numbers that are not real and finite.
  """
  array = as_host(name, value, SAEError)
  real = jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
  if array.shape != mask.shape or not real:
    raise SAEError(
      f'{name} has shape {list(array.shape)} and dtype {array.dtype}; expected numbers {list(mask.shape)}'
    )
  numbers = array[mask].astype(np.float64)
  if not np.isfinite(numbers).all():
    raise SAEError(f'{name} contains NaN or infinity at a token that counts')
  return numbers


def select_ids(
  tokens: Int[np.ndarray | Array, 'B T'], mask: Bool[np.ndarray, 'B T']
) -> Int64[np.ndarray, ' n']:
  """Ids of the tokens that count.

  Raises:
    SAEError: another shape than the mask, or ids that are not whole numbers of at least 0.
  """
  ids = as_host('tokens', tokens, SAEError)
  if ids.shape != mask.shape or ids.dtype.kind not in 'iu' or (ids[mask] < 0).any():
    raise SAEError(
      f'tokens of shape {list(ids.shape)} and dtype {ids.dtype}; expected ids of at least 0, {list(mask.shape)}'
    )
  return ids[mask].astype(np.int64)
