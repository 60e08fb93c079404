"""Padding: which columns of a batch are tokens, and which only make its rows equally long.

A model that is not told takes padding for text. On the left it shifts every position and is seen by every token, and
the logits of the real tokens are wrong by several nats; on the right no real token of a causal model sees it, but a
loss that counts it is wrong. Padding cannot be recognised by its token id, so everything that runs a model takes

    mask    bool [B, T], True at real tokens

and the truth is the row alone: what a masked batch has at real tokens is what each row has without padding.

Letters: B batch, T position.

Sharp edges: values at padding mean nothing (they are finite). A mask that is traced is checked for its shape and dtype
alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors


def check_mask(mask: Any, shape: tuple[int, ...]) -> Any:
  """A mask of tokens of this shape, [B, T], as an array; it may be given as nested sequences.

  Raises:
    MechjaxError: the mask is not boolean or has another shape, or a row has no real token.
  """
  if not isinstance(mask, jax.Array | np.ndarray):
    try:
      mask = np.asarray(mask)
    except ValueError as e:
      raise errors.MechjaxError(f'rows of different lengths are no mask: {mask!r:.100}') from e
  if mask.shape != shape or mask.dtype != jnp.bool_:
    raise errors.MechjaxError(
      f'the mask has shape {mask.shape} and dtype {mask.dtype}; '
      f'booleans of shape {shape} are wanted, True at real tokens',
      hint='tokens != pad, if no text contains the id of the padding',
    )
  if not isinstance(mask, jax.core.Tracer):
    empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
    if empty.size:
      raise errors.MechjaxError(f'the mask says that row {empty[0]} is padding throughout')
  return mask


def is_right_padded(mask: Any) -> bool:
  """Whether all padding is known to stand behind the real tokens, where no token of a causal model sees it."""
  if isinstance(mask, jax.core.Tracer):
    return False
  real = np.asarray(mask)
  return not (real[:, 1:] & ~real[:, :-1]).any()


def may_have_two(mask: Any, shape: tuple[int, ...]) -> bool:
  """Whether some row of tokens [B, T] has two real ones, or a mask that is traced may say so."""
  if mask is None or isinstance(mask, jax.core.Tracer):
    return shape[0] > 0 and shape[1] > 1
  return bool((np.asarray(mask).sum(axis=1) > 1).any())


def check_contiguous(mask: Any) -> None:
  """For code that numbers or windows its keys by column: no padding between the tokens of a row.

  Raises:
    MechjaxError: there is some, as far as it is known.
  """
  if isinstance(mask, jax.core.Tracer):
    return
  real = np.asarray(mask).astype(int)
  begins = (np.diff(real, axis=1, prepend=0) == 1).sum(axis=1)
  if (begins > 1).any():
    raise errors.MechjaxError(
      f'row {np.flatnonzero(begins > 1)[0]} of the mask has padding between its tokens',
      hint='move the tokens of each row together, or load the model without code=',
    )


def positions(mask_BxT: jax.Array) -> jax.Array:
  """How many real tokens stand before each column, int32 [B, T]; a token's position, if the column is one."""
  count_BxT = jnp.cumsum(mask_BxT.astype(jnp.int32), axis=1)
  return count_BxT - mask_BxT.astype(jnp.int32)


def tokens_first(mask_BxT: jax.Array) -> jax.Array:
  """Columns of each row in the order: real tokens first, then padding; int [B, T]."""
  return jnp.argsort(~mask_BxT, axis=1, stable=True)
