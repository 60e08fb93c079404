"""Plants of an edit in a single pass, and the positions that it changes there.

In a generation the plants of an edit are given to `generate` as they are. A single pass does not know which columns are
padding and where prompts end, so both are given once, for all plants:

    plants = in_one_pass(edit.plants(2.0), mask, prompt_length)
    logits = harvest.plant(forward)(plants, params, tokens)

The result equals what a generation computes on the same text. Mask and lengths are data: they may be traced, and other
ones compile nothing.

Letters: B prompts of a batch, T columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree

from mechjax import harvest
from mechjax.errors import SteeringError
from mechjax.harvest.positioned import Lengths
from mechjax.steering.where import Where

Mask = Bool[Array | np.ndarray, 'B T'] | tuple[int, int]
"""True at tokens, on either side of padding; or the shape (B, T) of a batch without padding."""


def in_one_pass(
  plants: Mapping[str, PyTree],
  mask: Mask,
  prompt_length: Int[Array | np.ndarray, ' B'] | None = None,
) -> dict[str, PyTree]:
  """Turns the plants of an edit into those of a single pass.

  Args:
    plants: from `Edit.plants`, or any plants; what is not `harvest.Positioned` stays as it is.
    mask: True at tokens, False at padding; or the shape of tokens without padding.
    prompt_length: tokens of each prompt, at least 1; None if the whole text is the prompt.

  Returns:
    Plants for `harvest.plant` and `harvest.harvest`.

  Raises:
    SteeringError: a row lacks positions that an edit asks for, or the lengths are not those of prompts within the
      texts. Not detected where mask or lengths are traced.
  """
  mask_BxT = as_mask(mask)
  lengths = _lengths(mask_BxT, prompt_length)
  positions_BxT = jnp.asarray(harvest.mask_to_positions(mask_BxT))
  given = jnp.sum(mask_BxT, 1, dtype=jnp.int32) if prompt_length is None else prompt_length
  prompt_length_B = jnp.asarray(given, jnp.int32)

  def bind(value: Any) -> Any:
    if isinstance(value, harvest.At):
      return harvest.At(value.layer, bind(value.value))
    if not isinstance(value, harvest.Positioned):
      return value
    if value.check is not None and lengths is not None:
      value.check(*lengths)
    return value.bind(positions_BxT, prompt_length_B)

  return {site: bind(value) for site, value in plants.items()}


def choose(
  where: Where, mask: Mask, prompt_length: Int[Array | np.ndarray, ' B'] | None = None
) -> tuple[Bool[np.ndarray, 'B T'], Int32[np.ndarray, 'B T']]:
  """The columns that an edit changes in a single pass, and the positions of all columns, on the host.

  Args, errors: as for `in_one_pass`; nothing may be traced.
  """
  mask_BxT = np.asarray(as_mask(mask))
  lengths = _lengths(mask_BxT, prompt_length)
  assert lengths is not None
  where.check(*lengths)
  positions_BxT = np.asarray(harvest.mask_to_positions(mask_BxT))
  given_B = np.asarray(lengths[1] if lengths[0] is None else lengths[0], np.int32)
  chosen = where.choose(positions_BxT, given_B)  # type: ignore[arg-type]  # NumPy, so that nothing is compiled
  return np.asarray(chosen), positions_BxT


def as_mask(mask: Mask) -> Bool[Array | np.ndarray, 'B T']:
  """Mask of a batch, which may be given by its shape.

  Raises:
    SteeringError: neither a boolean array [B, T] nor a shape.
  """
  if isinstance(mask, tuple):
    if len(mask) == 2 and all(isinstance(n, int) for n in mask):
      return np.ones(mask, bool)
    raise SteeringError(f'mask={mask!r:.100}; expected bool [B, T], or the shape (B, T)')
  if np.ndim(mask) != 2 or getattr(mask, 'dtype', None) != np.dtype(bool):
    raise SteeringError(
      f'mask={mask!r:.100}; expected bool [B, T], or the shape of tokens without padding',
      hint='tokens.shape; or mask != 0 for a mask of numbers',
    )
  return mask


def _lengths(
  mask_BxT: Bool[Array | np.ndarray, 'B T'], prompt_length: Int[Array | np.ndarray, ' B'] | None
) -> tuple[Lengths | None, Lengths] | None:
  """Tokens of each prompt and of each text, checked; None if they are traced."""
  if prompt_length is not None:
    shape, dtype = np.shape(prompt_length), getattr(prompt_length, 'dtype', np.dtype(object))
    if shape != mask_BxT.shape[:1] or not jnp.issubdtype(dtype, jnp.integer):
      raise SteeringError(
        f'prompt_length of shape {shape} and dtype {dtype} for {mask_BxT.shape[0]} rows',
        hint='an integer array [B], the tokens of each prompt',
      )
  if isinstance(mask_BxT, jax.core.Tracer) or isinstance(prompt_length, jax.core.Tracer):
    return None
  length_B = np.asarray(mask_BxT).sum(1)
  if prompt_length is None:
    return None, length_B
  prompt_length_B = np.asarray(prompt_length)
  for row, (n, length) in enumerate(zip(prompt_length_B, length_B)):
    if not 1 <= n <= length:
      raise SteeringError(
        f'row {row} has {length} tokens, and prompt_length={n}',
        cause='columns were counted with their padding, or the lengths belong to another batch',
      )
  return prompt_length_B, length_B
