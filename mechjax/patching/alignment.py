"""Positions that are counted from the end of prompts of different lengths.

Prompts of one template differ in the length of a name, so that equal columns hold different tokens. What they share is
the distance from the end: in "Fact: {name} plays the sport of" the last token of every name is at -5. A mean over
prompts, and the values that replace those of a component, are therefore kept by position from the end:

    as_positions([-6, -5])                  the same positions in all prompts, [P]
    as_positions([[-6, -5], [-4, -3]])      other positions in each prompt, [B, P]
    as_positions(None)                      every position

    find_columns(at, mask)                  the column of each position in each prompt, [B, P], on the host
    number_columns(at, mask)                for each column, the number of its position in `at`, or -1; may be traced

Padding is known by the mask alone. A model that takes no mask reads every column as text, and only padding on the right
is invisible to the tokens of a causal model: any other mask is refused for it.

Sharp edge: a mask that is traced cannot be refused. `find_missing` marks the rows that lack a position, so that the
caller can make them NaN.

Letters: B prompts of a batch, T columns. P, on this page, is a number of positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree, Shaped

from mechjax import harvest
from mechjax.errors import PatchingError
from mechjax.patching.pairs import int32

Positions = (
  Sequence[int]
  | Sequence[Sequence[int]]
  | Int[np.ndarray | Array, ' _']
  | Int[np.ndarray | Array, 'B _']
  | None
)
"""Negative integers [P], those of each prompt [B, P], or None for every position; -1 is the last token of a prompt."""

Mask = Bool[np.ndarray | Array, 'B T']
"""True at real tokens, False at padding."""


def as_positions(positions: Positions) -> Int32[np.ndarray, '... _'] | None:
  """Checks positions, and returns them as int32 [P] or [B, P]; None for every position.

  Raises:
    PatchingError: rows of different lengths, values that are not negative integers, one twice in a row, or none.
  """
  if positions is None:
    return None
  try:
    array = np.asarray(positions)
  except ValueError:
    raise _rows_differ(positions) from None
  if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in 'iu':
    raise PatchingError(
      f'positions={positions!r:.100} should be negative integers [P] or [B, P]',
      hint='[-1] is the last token of every prompt; None stands for every position',
    )
  if (array >= 0).any():
    raise PatchingError(
      f'position {array[array >= 0][0]} is counted from the beginning',
      cause='prompts of other lengths do not correspond there',
      hint='count from the end: -1 is the last token of each prompt',
    )
  found = int32(array, 'positions')
  for row in np.atleast_2d(found):
    if len(set(row.tolist())) < len(row):
      raise PatchingError(f'positions={row.tolist()} name a position twice')
  return found


def _rows_differ(positions: Any) -> PatchingError:
  sizes = [np.size(row) for row in positions]
  other = next((i for i, n in enumerate(sizes) if n != sizes[0]), 0)
  return PatchingError(
    f'prompt {other} has {sizes[other]} positions, and prompt 0 has {sizes[0]}',
    cause='names of different numbers of tokens, which do not align',
    hint='take names of one length, or the positions that all of them have, such as the last token',
  )


def is_real(
  inputs: PyTree[Shaped[np.ndarray | Array, 'B ...']], mask: Mask | None
) -> Bool[np.ndarray | Array, 'B T']:
  """The mask of a batch; without a mask every column is text.

  Args:
    inputs: token ids [B, T], or a pytree whose first array is [B, T, ...].
    mask: bool [B, T], or None.

  Raises:
    PatchingError: arrays without B and T, a mask of another shape or dtype, a row of padding only.
  """
  leaves = jax.tree.leaves(inputs)
  shape = np.shape(leaves[0])[:2] if leaves else ()
  if len(shape) < 2 or any(np.shape(x)[:1] != shape[:1] for x in leaves):
    raise PatchingError(
      f'inputs of shapes {[np.shape(x) for x in leaves]} are not prompts',
      hint='token ids [B, T], or arrays with a leading axis of prompts, the first of them [B, T, ...]',
    )
  if mask is None:
    return np.ones(shape, bool)
  if np.shape(mask) != shape or getattr(mask, 'dtype', None) != np.dtype(bool):
    dtype = getattr(mask, 'dtype', type(mask).__name__)
    raise PatchingError(
      f'the mask is {dtype} of shape {list(np.shape(mask))}, and the prompts have the shape {list(shape)}',
      hint='bool [B, T], True at real tokens',
    )
  if not is_traced(mask) and not np.asarray(mask).any(1).all():
    raise PatchingError(f'prompt {int(np.argmin(np.asarray(mask).any(1)))} has no token')
  return mask


def is_traced(*values: Any) -> bool:
  """Whether one of these is not known before the program runs."""
  return any(isinstance(x, jax.core.Tracer) for x in values)


def takes_mask(forward: Callable) -> bool:
  """Whether a function has a parameter `mask`."""
  try:
    return 'mask' in inspect.signature(forward).parameters
  except (TypeError, ValueError):  # a function without a signature
    return False


def check_padding(mask: Bool[np.ndarray, 'B T'], masked: bool) -> None:
  """Raises PatchingError for padding that a model would read as text.

  Args:
    mask: True at real tokens.
    masked: whether the model takes the mask.
  """
  wrong = np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(1))
  if len(wrong) and not masked:
    raise PatchingError(
      f'prompt {wrong[0]} has padding before or between its tokens, and the model takes no mask',
      where=f'mask: {mask[wrong[0]].astype(int).tolist()}',
      cause='padding on the left: the model would read it as text',
      hint='pad on the right; or pass a function (params, inputs, mask=None), such as model.apply',
    )


def check_there(at: Int[np.ndarray, '... _'], mask: Bool[np.ndarray, 'B T']) -> None:
  """Raises PatchingError unless every prompt has the positions that are asked for."""
  lengths = mask.sum(1)
  if at.ndim == 2 and len(at) != len(mask):
    raise PatchingError(
      f'positions of {len(at)} prompts, and {len(mask)} prompts',
      cause='positions that were made for another batch',
    )
  lowest = np.broadcast_to(at.min(-1), lengths.shape)
  short = np.flatnonzero(lengths < -lowest)
  if len(short):
    i = int(short[0])
    raise PatchingError(
      f'prompt {i} has {lengths[i]} tokens, and position {lowest[i]} was requested',
      hint='leave the prompt out, or count from nearer to the end',
    )


def find_columns(
  at: Int[np.ndarray, '... _'], mask: Bool[np.ndarray, 'B T']
) -> Int[np.ndarray, 'B _']:
  """Columns of positions in each prompt, int [B, P].

  Raises:
    PatchingError: a prompt lacks one of them.
  """
  check_there(at, mask)
  order_BxT = np.argsort(~mask, axis=1, kind='stable')  # real columns first
  index = mask.sum(1)[:, None] + np.broadcast_to(at, (len(mask), at.shape[-1]))
  return np.take_along_axis(order_BxT, index, axis=1)


def count_from_end(
  mask: Bool[np.ndarray | Array, 'B T'],
) -> Int32[Array, 'B T']:
  """Position of each column, counted from the end of its prompt; 0 at padding."""
  real_BxT = jnp.asarray(mask)
  order_BxT = harvest.mask_to_positions(real_BxT)
  return jnp.where(real_BxT, order_BxT - real_BxT.sum(1, dtype=jnp.int32)[:, None], 0)


def number_columns(
  at: Int32[np.ndarray | Array, '... _'] | None, mask: Bool[np.ndarray | Array, 'B T']
) -> Int32[Array, 'B T']:
  """Number of each column's position in `at`, and -1 where it is not in it.

  Args:
    at: [P] or [B, P]; None for every position, of which -1 has number 0, -2 number 1, and so on.
    mask: True at real tokens; may be traced.
  """
  from_end_BxT = count_from_end(mask)
  if at is None:
    return -1 - from_end_BxT
  hits = from_end_BxT[:, :, None] == jnp.asarray(at)[..., None, :]
  return jnp.where(hits.any(-1), hits.argmax(-1).astype(jnp.int32), -1)


def find_missing(
  at: Int32[np.ndarray | Array, '... _'] | None,
  mask: Bool[np.ndarray | Array, 'B T'],
  n_positions: int,
) -> Bool[Array, 'B T']:
  """Marks the columns for which there is no value: all those of a prompt that lacks a position of `at`.

  Args:
    at: as in `number_columns`.
    mask: True at real tokens; may be traced.
    n_positions: number of positions from the end that have values, if `at` is None.
  """
  real_BxT = jnp.asarray(mask)
  if at is None:
    return count_from_end(mask) < -n_positions
  short_B = real_BxT.sum(1, dtype=jnp.int32) < -jnp.asarray(at).min(-1)
  return short_B[:, None] & real_BxT
