"""Prompts of different lengths as one batch, whose positions are counted from the end.

A direction is read at the tokens that follow an instruction, and these stand at the end of every prompt, whatever its
length. So a position is a negative number, -1 for the last real token, and the column that it means differs from row
to row. The columns are computed here, once, from the mask; padding may be on either side.

    prompts = PromptSet.of(model.tokens(texts))            tokens with their mask, or rows of token ids
    prompts.columns((-1, -2))                              [B, 2]

Sharp edges: padding is known by the mask alone, never by a token id. A prompt that is shorter than a requested position
is an error, not a wrapped index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from mechjax.errors import SteeringError


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """B prompts.

  Attributes:
    tokens: token ids, int32 [B, T].
    mask: True at real tokens, bool [B, T].

  Raises:
    SteeringError: other shapes or dtypes, no prompts, or a row of padding only.
  """

  tokens: Int32[np.ndarray, 'B T']
  mask: Bool[np.ndarray, 'B T']

  def __post_init__(self) -> None:
    tokens, mask = self.tokens, self.mask
    good = tokens.ndim == 2 and tokens.shape == mask.shape and mask.dtype == bool
    if not good or tokens.dtype.kind not in 'iu':
      raise SteeringError(
        f'tokens {tokens.dtype}{list(tokens.shape)} with a mask {mask.dtype}{list(mask.shape)} are not prompts',
        hint='pass token ids int [B, T] and their mask bool [B, T], True at real tokens',
      )
    if not mask.any(1).all() or not len(mask):
      empty = np.flatnonzero(~mask.any(1))
      raise SteeringError(
        f'prompt {empty[0]} has no token' if len(empty) else 'there are no prompts'
      )

  @classmethod
  def of(cls, prompts: Any, pad: int = 0) -> PromptSet:
    """Makes a set of prompts.

    Args:
      prompts: rows of token ids; a pair (tokens [B, T], mask [B, T]), as `model.tokens` of several texts returns it; an
        array of token ids [B, T] without padding; or a `PromptSet`, which is returned.
      pad: token id that fills the padding of rows, on the right.
    """
    if isinstance(prompts, PromptSet):
      return prompts
    if isinstance(prompts, tuple) and len(prompts) == 2 and np.ndim(prompts[0]) == 2:
      tokens, mask = map(np.asarray, prompts)
      return cls(tokens.astype(np.int32) if tokens.dtype.kind in 'iu' else tokens, mask)
    rows = [np.asarray(row) for row in prompts]
    wrong = [i for i, r in enumerate(rows) if r.ndim != 1 or not r.size or r.dtype.kind not in 'iu']
    if wrong:
      raise SteeringError(
        f'prompt {wrong[0]} is not a row of token ids: {rows[wrong[0]]!r:.100}',
        hint='pass token ids, for example model.tokens(texts)',
      )
    return cls.of_rows(rows, pad)

  @classmethod
  def of_rows(cls, rows: Sequence[Int[np.ndarray, ' _']], pad: int = 0) -> PromptSet:
    """Pads rows of token ids on the right; arguments as in `of`."""
    width = max(map(len, rows), default=0)
    mask = np.arange(width) < np.array([len(r) for r in rows], int)[:, None]
    tokens = np.full(mask.shape, pad, np.int32)
    for row, onto in zip(rows, tokens):
      onto[: len(row)] = row
    return cls(tokens, mask)

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def rows(self) -> list[Int32[np.ndarray, ' _']]:
    """Token ids of each prompt, without padding."""
    return [tokens[mask] for tokens, mask in zip(self.tokens, self.mask)]

  def take(self, index: Int[np.ndarray, ' _'] | Bool[np.ndarray, ' _']) -> PromptSet:
    """Some of the prompts, by index or by a boolean for each.

    Raises:
      SteeringError: none is left.
    """
    return PromptSet(self.tokens[index], self.mask[index])

  def columns(self, positions: Sequence[int]) -> Int[np.ndarray, 'B positions']:
    """Columns of positions that are counted from the end of each prompt.

    Args:
      positions: negative integers, -1 for the last real token.

    Returns:
      int [B, positions].

    Raises:
      SteeringError: no positions, a position that is not negative, or a prompt that is too short.
    """
    _check_positions(positions)
    lengths_B = self.mask.sum(1)
    short = np.flatnonzero(lengths_B < -min(positions))
    if len(short):
      raise SteeringError(
        f'prompt {short[0]} has {lengths_B[short[0]]} tokens, and position {min(positions)} was requested',
        hint='leave it out, or count from nearer to the end',
      )
    order_BxT = np.argsort(~self.mask, axis=1, kind='stable')  # real columns first
    return np.take_along_axis(order_BxT, lengths_B[:, None] + np.asarray(positions), axis=1)

  def blocks(self, size: int) -> Iterator[tuple[Int[np.ndarray, ' _'], int]]:
    """Indices of blocks of `size` prompts, or of all if there are fewer; and the number of them that count.

    The last block is filled up with the last prompt, so that all blocks have one shape.
    """
    size = min(size, len(self))
    for start in range(0, len(self), size):
      index = np.minimum(np.arange(start, start + size), len(self) - 1)
      yield index, min(size, len(self) - start)


def _check_positions(positions: Sequence[int]) -> None:
  """Raises SteeringError unless positions are counted from the end."""
  integers = [isinstance(p, int | np.integer) and not isinstance(p, bool) for p in positions]
  if not integers or not all(integers) or max(positions) >= 0:
    raise SteeringError(
      f'positions={positions!r} should be negative integers',
      cause='a position counted from the beginning, where prompts of other lengths do not correspond',
      hint='-1 is the last real token of each prompt, -2 the one before it',
    )
