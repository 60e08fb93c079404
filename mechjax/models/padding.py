"""Padding: masks that mark the real tokens of a batch, whose rows are padded to one length.

Without a mask, a model treats padding as text. Left padding shifts every position and is seen by every token, and the
logits of the real tokens are wrong by several nats; right padding is not seen by a real token of a causal model, but a
loss that counts it is wrong. Padding cannot be recognised by its token id, so every function that runs a model takes

    mask    bool [B, T], True at real tokens

and the reference is the row alone: the values of a masked batch at real tokens are those of each row without padding.
`Padded` holds tokens with their mask; `model.tokens` of several texts returns it.

Letters: B batch, T position.

Sharp edges: values at padding are finite and meaningless; `nan_at_padding` makes them NaN, so that a mean or a plot
that includes them shows it. Only the shape and dtype of a traced mask are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors
from mechjax.generate.columns import axes_of
from mechjax.harvest import Activations


class Padded(NamedTuple):
  """Texts of different lengths as one batch; a function of tokens and mask takes it as `f(*padded)`.

  Attributes:
    tokens: ids, int32 [B, T]; 0 at padding.
    mask: True at real tokens, bool [B, T].
  """

  tokens: jax.Array
  mask: jax.Array


def pad(rows: Sequence[Sequence[int]], side: Literal['right', 'left'] = 'right') -> Padded:
  """Pads rows of token ids to one length.

  Args:
    rows: ids of each text.
    side: where padding is put.

  Raises:
    MechjaxError: the side is not known.
  """
  check_side(side)
  T = max(map(len, rows))
  tokens, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
  for row, onto, real in zip(rows, tokens, mask):
    at = slice(0, len(row)) if side == 'right' else slice(T - len(row), T)
    onto[at], real[at] = row, True
  return Padded(jnp.asarray(tokens), jnp.asarray(mask))


def check_side(side: Any) -> None:
  """Checks the side of a padding.

  Raises:
    MechjaxError: it is not 'right' or 'left'.
  """
  if side not in ('right', 'left'):
    raise errors.unknown(errors.MechjaxError, 'padding', side, ['right', 'left'])


Values = TypeVar('Values', jax.Array, Activations)


def nan_at_padding(values: Values, mask: Any) -> Values:
  """Values with NaN at padding, where they have no meaning.

  Args:
    values: reads of a batch, in which queries and keys at padding become NaN; or one array [B, T, ...].
    mask: of the batch, bool [B, T].

  Raises:
    SiteError: the axes of a site are not known.
    MechjaxError: integers or booleans, which do not have a NaN; other values; another mask, or None.
  """
  if mask is None:
    raise errors.MechjaxError(
      'mask=None says that there is no padding',
      hint='give the mask of the batch: tokens, mask = model.tokens(texts)',
    )
  if not isinstance(values, Activations | jax.Array | np.ndarray):
    raise errors.MechjaxError(
      f'expected reads of a batch, or an array [B, T, ...], not {values!r:.100}',
      hint='nan_at_padding(acts, mask), or nan_at_padding(acts[site], mask)',
    )
  if not isinstance(values, Activations):
    return _hide(values, mask, 0, 1)

  def hide(name: str, x: jax.Array, lead: int) -> jax.Array:
    axes = axes_of(name)
    for axis, letter in enumerate(axes):
      if letter in 'TS':
        x = _hide(x, mask, lead + axes.index('B'), lead + axis)
    return x

  return values.map(hide)


def _hide(x: Any, mask: Any, row: int, axis: int) -> jax.Array:
  """NaN where the mask is False; its rows lie along one axis of the values, its columns along another."""
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    raise errors.MechjaxError(f'values of dtype {x.dtype} cannot be NaN at padding')
  if x.ndim <= axis:
    raise errors.MechjaxError(f'values of shape {x.shape}; expected [B, T, ...]')
  mask = jnp.asarray(check_mask(mask, (x.shape[row], x.shape[axis])))
  shape = [1] * x.ndim
  shape[row], shape[axis] = mask.shape
  return jnp.where(mask.reshape(shape), x, jnp.asarray(jnp.nan, x.dtype))


def check_mask(mask: Any, shape: tuple[int, ...]) -> Any:
  """Checks a mask of tokens of this shape, [B, T], and returns it as an array; nested sequences are converted.

  Raises:
    MechjaxError: the mask is not boolean or has another shape, or a row does not have a real token.
  """
  if not isinstance(mask, jax.Array | np.ndarray):
    try:
      mask = np.asarray(mask)
    except ValueError as e:
      raise errors.MechjaxError(
        f'rows of different lengths do not form a mask: {mask!r:.100}'
      ) from e
  if mask.shape != shape or mask.dtype != jnp.bool_:
    raise errors.MechjaxError(
      f'the mask has shape {mask.shape} and dtype {mask.dtype}; '
      f'expected booleans of shape {shape}, True at real tokens',
      hint='use tokens != pad, if no text contains the id of the padding',
    )
  if not isinstance(mask, jax.core.Tracer):
    empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
    if empty.size:
      raise errors.MechjaxError(f'row {empty[0]} of the mask is padding only, without a token')
  return mask


def is_right_padded(mask: Any) -> bool:
  """Whether all padding is known to follow the real tokens, so that no token of a causal model sees it."""
  if isinstance(mask, jax.core.Tracer):
    return False
  real = np.asarray(mask)
  return not (real[:, 1:] & ~real[:, :-1]).any()


def may_have_two(mask: Any, shape: tuple[int, ...]) -> bool:
  """Whether some row of tokens [B, T] has two real tokens, or may have them if the mask is traced."""
  if mask is None or isinstance(mask, jax.core.Tracer):
    return shape[0] > 0 and shape[1] > 1
  return bool((np.asarray(mask).sum(axis=1) > 1).any())


def check_contiguous(mask: Any) -> None:
  """Checks that a row has no padding between its tokens, for code that numbers or windows its keys by column.

  Raises:
    MechjaxError: there is padding between tokens, as far as the mask is known.
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
  """Number of real tokens before each column, int32 [B, T]: at a real token, its position."""
  count_BxT = jnp.cumsum(mask_BxT.astype(jnp.int32), axis=1)
  return count_BxT - mask_BxT.astype(jnp.int32)


def tokens_first(mask_BxT: jax.Array) -> jax.Array:
  """Columns of each row in the order: real tokens first, then padding; int [B, T]."""
  return jnp.argsort(~mask_BxT, axis=1, stable=True)
