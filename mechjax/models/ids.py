"""Token ids, checked before a model reads them.

An index out of range is an error in Python but not in JAX: -1 and -100 (the label that other libraries use for ignored
positions) read the end of the vocabulary, 60,000 is NaN in one code base and the last token in another, and 1.5 is
truncated to 1. Each of them gives numbers that look right.

    check_ids([[504, 3575]], n_vocab)      int32 [1, 2]; an error for invalid ids
    nan_without_token(logits, tokens)      the same inside a traced program, which cannot raise

Ids on the host or on devices of this host are checked by value, which waits for them and costs some microseconds. Ids
that are traced, or that are on devices of other hosts, are not known yet; a row that turns out to hold an invalid id
has NaN logits, in every code base. (In a text so long that attention runs block by block, the positions before that id
may keep their values, which it does not change.)

Letters: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors
from mechjax.models.padding import Padded

_ARRAYS = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
_SHAPES = {1: '[T]', 2: '[B, T]'}
_HINT = 'use model.tokens(text) to make them; tokens[None] adds a missing batch axis'


def check_ids(tokens: Any, n_vocab: int, ndim: int | None = 2) -> Any:
  """Checks token ids, and returns them as an array.

  Args:
    tokens: array or nested sequences of integers.
    n_vocab: V; ids are from 0 to V - 1.
    ndim: required number of axes; None for any.

  Returns:
    The array itself, if `tokens` is one; a NumPy array, int32, otherwise.

  Raises:
    MechjaxError: the values are not integers, have another number of axes, or are not in the vocabulary.
  """
  array: Any = tokens if isinstance(tokens, _ARRAYS) else _as_array(tokens)
  check_kind(array, ndim)
  if _is_known(array):
    _check_range(np.asarray(array), n_vocab)
  return array if array is tokens else array.astype(np.int32)


def check_kind(array: Any, ndim: int | None = 2) -> None:
  """Checks the dtype of ids and their number of axes, which are known even while they are traced.

  Raises:
    MechjaxError: the values are not integers, or have another number of axes.
  """
  _check_one_argument(array)
  if ndim not in (None, array.ndim) or not _is_integer(array.dtype):
    wanted = 'integers' if ndim is None else f'integers of shape {_SHAPES[ndim]}'
    raise errors.MechjaxError(
      f'tokens have shape {array.shape} and dtype {array.dtype}; expected {wanted}', hint=_HINT
    )
  if ndim == 2 and 0 in array.shape:
    raise errors.MechjaxError(f'tokens of shape {array.shape} hold no token', hint=_HINT)


def _check_one_argument(tokens: Any) -> None:
  if isinstance(tokens, Padded):
    raise errors.MechjaxError(
      'tokens together with their mask were passed as one argument',
      hint='pass two: f(*batch), or f(batch.tokens, batch.mask)',
    )


def _as_array(tokens: Any) -> np.ndarray:
  _check_one_argument(tokens)
  try:
    array = np.asarray(tokens)
  except ValueError as e:
    raise errors.MechjaxError(
      f'rows of different lengths do not form an array of tokens: {tokens!r:.100}',
      hint='pass rows one by one; model.generate takes prompts of any lengths',
    ) from e
  if array.dtype.kind in 'OSU':
    raise errors.MechjaxError(f'expected token ids, not {tokens!r:.100}', hint=_HINT)
  return array


def _is_integer(dtype: Any) -> bool:
  return bool(jnp.issubdtype(dtype, jnp.integer))


def _is_known(array: Any) -> bool:
  if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
    return False
  return not isinstance(array, jax.Array) or array.is_fully_addressable


def _check_range(array: np.ndarray, n_vocab: int) -> None:
  # As an unsigned integer, a negative number is a large one, so one comparison finds both.
  if not array.size or array.view(f'u{array.dtype.itemsize}').max() < n_vocab:
    return
  wrong = (array < 0) | (array >= n_vocab)
  at = tuple(map(int, np.argwhere(wrong)[0]))
  raise errors.MechjaxError(
    f'token id {array[at]} is not in the vocabulary',
    where=f'index {at} of ids of shape {array.shape}; the model has ids from 0 to {n_vocab - 1}',
    cause='ids of another tokenizer, or a label such as -100, which marks ignored positions',
  )


def nan_without_token(logits_BxTxV: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
  """Logits, with NaN in every row that holds an id outside the vocabulary."""
  known_B = (replace_negative(tokens_BxT) < logits_BxTxV.shape[-1]).all(-1)
  return jnp.where(known_B[:, None, None], logits_BxTxV, jnp.nan)


def replace_negative(tokens: jax.Array) -> jax.Array:
  """Ids, with the largest integer in place of negative ones: `jnp.take` gives NaN for it and does not wrap around."""
  signed = tokens if tokens.dtype.itemsize > 4 else tokens.astype(jnp.int32)
  return jnp.where(signed < 0, jnp.iinfo(signed.dtype).max, signed)
