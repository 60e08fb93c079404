"""Positions that an edit changes: one choice, with one meaning in a pass, in a generation and in upstream code.

An edit of the first three tokens of a prompt must change the same three tokens in a pass over the whole text, in the
pass over the prompts of a generation, in rows that are padded on either side, and change nothing in later steps. So a
choice is a function of positions in the text and of the length of the prompt, and never of columns:

    first(3)                  the first three tokens of the prompt
    last(1)                   the last token of the prompt
    last(1) | generated       from the last token of the prompt on, as contrastive activation addition has it
    at(4, 5, 6)               these positions of the text, counted from 0
    prompt, generated         the tokens of the prompt; those after it
    everywhere                all tokens
    mask(bool [B, T])         positions of each text; False beyond its width

A row that lacks the positions asked for is an error, never an edit of fewer tokens. `first`, `last` and `at` number
their positions, so that an edit may add another vector at each of them.

Sharp edges: the lengths of rows are checked where they are known before anything runs, which is always so in a
generation, and in a pass unless the mask or the lengths are traced. The token that a generation chooses last is not
read by the model, so that no edit reaches it.

Letters: B prompts of a batch, T positions.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import operator
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from mechjax.errors import SteeringError
from mechjax.harvest.positioned import Lengths


class Where(abc.ABC):
  """A choice of positions; `a | b` chooses the positions of either."""

  @abc.abstractmethod
  def choose(
    self, positions_BxT: Int32[Array, 'B T'], prompt_length_B: Int32[Array, ' B']
  ) -> Bool[Array, 'B T']:
    """Marks the columns that are chosen.

    Args:
      positions_BxT: positions of the columns in their texts; -1 at padding, which is never chosen.
      prompt_length_B: tokens of each prompt.
    """

  def check(self, prompt_length_B: Lengths | None, length_B: Lengths) -> None:  # noqa: B027
    """Checks that every row has the positions that are asked for.

    Args:
      prompt_length_B: tokens of each prompt; None if it is not known, and the whole text stands for it.
      length_B: tokens of each text.

    Raises:
      SteeringError: a row lacks some of them.
    """

  def __or__(self, other: Where) -> Where:
    return _Either(self, other)


class Ordered(Where):
  """A choice of a fixed number of positions in an order.

  Attributes:
    n: number of positions in each row.
  """

  n: int

  @abc.abstractmethod
  def rank(
    self, positions_BxT: Int32[Array, 'B T'], prompt_length_B: Int32[Array, ' B']
  ) -> Int32[Array, 'B T']:
    """Number of each column among the positions chosen, from 0; any number at other columns."""


@dataclasses.dataclass(frozen=True)
class _First(Ordered):
  n: int

  def choose(self, positions_BxT, prompt_length_B):
    return (positions_BxT >= 0) & (positions_BxT < self.n)

  def rank(self, positions_BxT, prompt_length_B):
    return positions_BxT

  def check(self, prompt_length_B, length_B):
    _check_long_enough(self.n, prompt_length_B, length_B, self)

  def __str__(self) -> str:
    return f'first({self.n})'


@dataclasses.dataclass(frozen=True)
class _Last(Ordered):
  n: int

  def choose(self, positions_BxT, prompt_length_B):
    rank_BxT = self.rank(positions_BxT, prompt_length_B)
    return (positions_BxT >= 0) & (rank_BxT >= 0) & (rank_BxT < self.n)

  def rank(self, positions_BxT, prompt_length_B):
    return positions_BxT - (prompt_length_B[:, None] - self.n)

  def check(self, prompt_length_B, length_B):
    _check_long_enough(self.n, prompt_length_B, length_B, self)

  def __str__(self) -> str:
    return f'last({self.n})'


@dataclasses.dataclass(frozen=True)
class _Listed(Ordered):
  positions: tuple[int, ...]

  @property
  def n(self) -> int:  # type: ignore[override]
    return len(self.positions)

  def choose(self, positions_BxT, prompt_length_B):
    return functools.reduce(operator.or_, (positions_BxT == p for p in self.positions))

  def rank(self, positions_BxT, prompt_length_B):
    rank_BxT = jnp.zeros_like(positions_BxT)
    for i, p in enumerate(self.positions):
      rank_BxT = jnp.where(positions_BxT == p, i, rank_BxT)
    return rank_BxT

  def check(self, prompt_length_B, length_B):
    for row, length in enumerate(length_B):
      if length <= max(self.positions):
        raise SteeringError(
          f'row {row} has {length} tokens, and no position {max(self.positions)}',
          where=str(self),
          cause='positions are counted from 0, and the token that a generation chooses last is not read',
          hint='choose smaller positions, or give longer texts',
        )

  def __str__(self) -> str:
    return f'at({", ".join(map(str, self.positions))})'


@dataclasses.dataclass(frozen=True)
class _Prompt(Where):
  def choose(self, positions_BxT, prompt_length_B):
    return (positions_BxT >= 0) & (positions_BxT < prompt_length_B[:, None])

  def __str__(self) -> str:
    return 'prompt'


@dataclasses.dataclass(frozen=True)
class _Generated(Where):
  def choose(self, positions_BxT, prompt_length_B):
    return (positions_BxT >= 0) & (positions_BxT >= prompt_length_B[:, None])

  def check(self, prompt_length_B, length_B):
    if prompt_length_B is None:
      raise SteeringError(
        'an edit of generated tokens in a text without the length of its prompt',
        where=str(self),
        cause='a single pass does not know where the prompt ends, so that nothing would be edited',
        hint='give prompt_length=, the tokens of each prompt',
      )

  def __str__(self) -> str:
    return 'generated'


@dataclasses.dataclass(frozen=True)
class _Everywhere(Where):
  def choose(self, positions_BxT, prompt_length_B):
    return positions_BxT >= 0

  def __str__(self) -> str:
    return 'everywhere'


@dataclasses.dataclass(frozen=True)
class _Either(Where):
  one: Where
  other: Where

  def choose(self, positions_BxT, prompt_length_B):
    one_BxT = self.one.choose(positions_BxT, prompt_length_B)
    return one_BxT | self.other.choose(positions_BxT, prompt_length_B)

  def check(self, prompt_length_B, length_B):
    self.one.check(prompt_length_B, length_B)
    self.other.check(prompt_length_B, length_B)

  def __str__(self) -> str:
    return f'{self.one} | {self.other}'


@dataclasses.dataclass(frozen=True, eq=False)
class _ByMask(Where):
  mask_BxT: Bool[Array, 'B T']

  def choose(self, positions_BxT, prompt_length_B):
    B, W = self.mask_BxT.shape
    if positions_BxT.shape[0] != B:
      raise self._other_rows(positions_BxT.shape[0])
    row_Bx1 = W * jnp.arange(B, dtype=jnp.int32)[:, None]
    inside_BxT = (positions_BxT >= 0) & (positions_BxT < W)
    # One flat table: a lookup along both axes could not be proven to act on each position by itself.
    index_BxT = row_Bx1 + jnp.clip(positions_BxT, 0, W - 1)
    return inside_BxT & self.mask_BxT.reshape(-1)[index_BxT]

  def check(self, prompt_length_B, length_B):
    B, W = self.mask_BxT.shape
    if len(length_B) != B:
      raise self._other_rows(len(length_B))
    if isinstance(self.mask_BxT, jax.core.Tracer):
      return
    beyond_BxT = np.asarray(self.mask_BxT) & (np.arange(W) >= length_B[:, None])
    if beyond_BxT.any():
      row, position = np.argwhere(beyond_BxT)[0]
      raise SteeringError(
        f'the mask chooses position {position} of row {row}, which has {length_B[row]} tokens',
        where=str(self),
        hint='masks are by position in the text, counted from 0: move those of rows that are padded on the left',
      )

  def _other_rows(self, n: int) -> SteeringError:
    return SteeringError(
      f'a mask of {self.mask_BxT.shape[0]} rows for a batch of {n}',
      where=str(self),
      cause='with n_samples every prompt has several rows',
      hint='np.repeat(mask, n_samples, axis=0)',
    )

  def __str__(self) -> str:
    return f'mask(bool {list(self.mask_BxT.shape)})'


prompt: Where = _Prompt()
"""The tokens of the prompt; in a pass without the length of the prompt, all tokens."""
generated: Where = _Generated()
"""The tokens after the prompt."""
everywhere: Where = _Everywhere()
"""All tokens."""


def first(n: int) -> Ordered:
  """The first `n` tokens of the prompt.

  Raises:
    SteeringError: not a whole number of at least 1.
  """
  return _First(_check_count('first', n))


def last(n: int) -> Ordered:
  """The last `n` tokens of the prompt, in the order of the text.

  Raises:
    SteeringError: not a whole number of at least 1.
  """
  return _Last(_check_count('last', n))


def at(*positions: int) -> Ordered:
  """Some positions of the text, counted from 0, in the order given.

  Raises:
    SteeringError: none, one twice, or one that is not a whole number of at least 0.
  """
  found = tuple(n for p in positions if (n := _as_integer(p)) is not None and n >= 0)
  if not found or len({*found}) < len(positions):
    raise SteeringError(
      f'at({", ".join(map(repr, positions))}): not different positions counted from 0',
      hint='at(4, 5, 6); last(n) counts from the end of the prompt',
    )
  return _Listed(found)


def mask(mask_BxT: Bool[Array | np.ndarray, 'B T']) -> Where:
  """Positions of each text, marked in an array; False beyond its width.

  Args:
    mask_BxT: whether each position of each row is chosen. Column t is position t of the text, whatever the padding.

  Raises:
    SteeringError: not a boolean array with two axes.
  """
  if (
    np.ndim(mask_BxT) != 2
    or getattr(mask_BxT, 'dtype', None) != np.dtype(bool)
    or not np.size(mask_BxT)
  ):
    raise SteeringError(
      f'a mask of shape {np.shape(mask_BxT)} and type {getattr(mask_BxT, "dtype", type(mask_BxT))}; '
      'expected bool [B, T]',
      hint='np.array(rows, bool)',
    )
  return _ByMask(jnp.asarray(mask_BxT))


_BY_NAME: dict[str, Callable[..., Where]] = {
  'first': first,
  'last': last,
  'at': at,
  'prompt': lambda: prompt,
  'generated': lambda: generated,
  'everywhere': lambda: everywhere,
}


def parse(text: str) -> Where:
  """Reads a choice from its text, such as 'last(1) | generated': the inverse of `str`.

  Raises:
    SteeringError: another text, or that of a mask, whose positions are not in it.
  """
  found: Where | None = None
  for part in text.split('|'):
    match = re.fullmatch(
      r'(first|last|at)\(([\d, ]+)\)|(prompt|generated|everywhere)', part.strip()
    )
    if match is None:
      raise SteeringError(
        f'{text!r:.100} is not a choice of positions', hint=f'known: {", ".join(_BY_NAME)}'
      )
    numbers = [int(n) for n in (match[2] or '').split(',') if n.strip()]
    one = _BY_NAME[match[1] or match[3]](*numbers)
    found = one if found is None else found | one
  assert found is not None  # a text has at least one part
  return found


def _check_count(name: str, n: int) -> int:
  found = _as_integer(n)
  if found is None or found < 1:
    raise SteeringError(f'{name}({n!r}): expected a whole number of tokens, at least 1')
  return found


def _as_integer(n: object) -> int | None:
  try:
    return None if isinstance(n, bool) else operator.index(n)  # type: ignore[arg-type]
  except TypeError:
    return None


def _check_long_enough(
  n: int, prompt_length_B: Lengths | None, length_B: Lengths, where: Where
) -> None:
  of = 'text' if prompt_length_B is None else 'prompt'
  for row, length in enumerate(length_B if prompt_length_B is None else prompt_length_B):
    if length < n:
      raise SteeringError(
        f'the {of} of row {row} has {length} tokens, fewer than the {n} that the edit asks for',
        where=str(where),
        hint='edit fewer tokens, or choose prompts that are long enough',
      )
