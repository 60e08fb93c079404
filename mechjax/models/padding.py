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


def check(mask: Any, shape: tuple[int, ...]) -> None:
  """Checks that a mask belongs to tokens of this shape, [B, T].

  Raises:
    MechjaxError: the mask is not boolean or has another shape, or a row has no real token.
  """
  if jnp.shape(mask) != shape or jnp.result_type(mask) != jnp.bool_:
    raise errors.MechjaxError(
      f'the mask has shape {jnp.shape(mask)} and dtype {jnp.result_type(mask)}; '
      f'booleans of shape {shape} are wanted, True at real tokens',
      mend='tokens != pad, if no text contains the id of the padding',
    )
  if not isinstance(mask, jax.core.Tracer):
    empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
    if empty.size:
      raise errors.MechjaxError(f'the mask says that row {empty[0]} is padding throughout')


def stands_behind(mask: Any) -> bool:
  """Whether all padding is known to stand behind the real tokens, where no token of a causal model sees it."""
  if isinstance(mask, jax.core.Tracer):
    return False
  real = np.asarray(mask)
  return not (real[:, 1:] & ~real[:, :-1]).any()


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
      mend='move the tokens of each row together, or load the model without code=',
    )


def positions(mask_BxT: jax.Array) -> jax.Array:
  """How many real tokens stand before each column, int32 [B, T]; a token's position, if the column is one."""
  count_BxT = jnp.cumsum(mask_BxT.astype(jnp.int32), axis=1)
  return count_BxT - mask_BxT.astype(jnp.int32)


def together(mask_BxT: jax.Array) -> jax.Array:
  """Columns of each row in the order: real tokens first, then padding; int [B, T]."""
  return jnp.argsort(~mask_BxT, axis=1, stable=True)
