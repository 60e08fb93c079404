"""Prompt pairs: the clean and the noise prompts whose activations are exchanged.

Patching compares a value at a position of one prompt with the value at the same position of the other. That is
meaningful only if the two prompts are aligned token by token, and an off-by-one error here gives plausible numbers that
are wrong. So pairs are checked once, when they are made, and all other code relies on that check.

    pairs = Pairs.of(clean=[[5, 8, 2], [5, 9, 2, 4]], noise=[[5, 7, 2], [5, 3, 2, 4]])
    pairs.last          # [2, 3]: where each pair predicts its answer

Prompts of one pair have equal length; different pairs may differ, and are padded on the right, where no real token
of a causal model attends to the padding. `real` marks the real positions: nodes and metrics use no others.

Sharp edge: the check for a shift is a heuristic. It refuses a pair that agrees better when one prompt is moved by
up to three tokens, the typical sign of an inserted token. `Pairs(...)` itself does not look for shifts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Int32, Integer, PyTree, Shaped, UInt32

from mechjax.errors import PatchingError
from mechjax.patching.checks import check_kind

RealMask = Bool[np.ndarray | Array, 'B T']
"""True at real positions, False at padding."""

Rows = slice | Shaped[np.ndarray | Array, ' _']
"""Some of the pairs: a slice, indices or booleans."""

Prompts = (
  Iterable[Sequence[int | np.integer] | Integer[np.ndarray | Array, ' _']]
  | Integer[np.ndarray | Array, 'B _']
  | tuple[Integer[np.ndarray | Array, 'B _'], Bool[np.ndarray | Array, 'B _']]
)
"""Token ids of B prompts, or tokens with their mask, as `model.tokens` of several texts returns them."""

Ids = (
  Sequence[int | np.integer]
  | Sequence[Sequence[int | np.integer]]
  | Integer[np.ndarray | Array, ' B']
  | Integer[np.ndarray | Array, 'B _']
)
"""One integer, or several, for each of B pairs."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
  """B prompt pairs.

  Attributes:
    clean: input of the model, [B, T] token ids or any pytree of arrays with a leading axis of B.
    noise: the same for the other prompt of each pair.
    real: bool [B, T], False at padding.
  """

  clean: PyTree[Shaped[np.ndarray | Array, 'B ...']]
  noise: PyTree[Shaped[np.ndarray | Array, 'B ...']]
  real: RealMask

  @classmethod
  def of(cls, clean: Prompts, noise: Prompts, pad: int | np.integer = 0) -> Pairs:
    """Pads and checks token ids.

    Args:
      clean: B sequences of token ids, int [B, T], or `model.tokens(texts)`: tokens [B, T] with their mask.
      noise: as many sequences, each as long as its clean partner.
      pad: token id that fills padding.

    Returns:
      The pairs, on the host.

    Raises:
      PatchingError: no pairs; prompts of a pair that differ in length, are equal, or are shifted against each other.
    """
    clean, noise = ([_ids(p) for p in _rows(prompts)] for prompts in (clean, noise))
    pad = int(int32(pad, 'the token id of padding'))
    if not clean or len(clean) != len(noise):
      raise PatchingError(f'{len(clean)} clean and {len(noise)} noise prompts make no pairs')
    for i, (a, b) in enumerate(zip(clean, noise)):
      _check(i, a, b)
    real = np.zeros((len(clean), max(map(len, clean))), bool)
    padded = np.full((2, *real.shape), pad, np.int32)
    for i, both in enumerate(zip(clean, noise)):
      real[i, : len(both[0])] = True
      padded[:, i, : len(both[0])] = both
    return cls(padded[0], padded[1], real)

  def __len__(self) -> int:
    return len(self.real)

  @property
  def last(self) -> Int[np.ndarray, ' B']:
    """The last real position of each pair, int [B]."""
    positions = np.arange(self.real.shape[1])
    return np.where(np.asarray(self.real), positions, -1).max(axis=1)

  @property
  def digests(self) -> UInt32[np.ndarray, 'B 2'] | None:
    """A hash that identifies each pair, whichever side is clean, uint32 [B, 2]; None if the data is traced."""
    leaves = jax.tree.leaves(self)
    if any(isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) for x in leaves):
      return None
    check(self)
    sides = [[*map(np.asarray, jax.tree.leaves(side))] for side in (self.clean, self.noise)]
    rows = []
    for i, real in enumerate(np.asarray(self.real)):
      where = np.flatnonzero(real).astype(np.int64).tobytes()
      rows.append(_digest(*sorted(_digest_row(side, i, real) for side in sides), where))
    return np.frombuffer(b''.join(rows), np.uint32).reshape(-1, 2)

  def rows(self, index: Rows) -> Pairs:
    """Some of the pairs."""
    return jax.tree.map(lambda x: x[index], self)


def _digest(*parts: bytes) -> bytes:
  return hashlib.blake2b(b''.join(parts), digest_size=8).digest()


def _digest_row(arrays: Sequence[np.ndarray], i: int, real: np.ndarray) -> bytes:
  """A digest of one row of some arrays, without padding; integers of all widths count as one type."""
  rows = [x[i][real] if x.shape[1:2] == real.shape else x[i] for x in arrays]
  rows = [x.astype(np.int64) if x.dtype.kind in 'iu' else x for x in rows]
  return _digest(*(repr((x.shape, x.dtype.str)).encode() + x.tobytes() for x in rows))


def check(pairs: Pairs) -> None:
  """Raises PatchingError unless arrays have a leading axis of B and equal shapes, and padding is on the right."""
  check_pairs(pairs)
  clean, noise = (jax.tree.map(np.shape, side) for side in (pairs.clean, pairs.noise))
  if clean != noise:
    raise PatchingError(
      f'the clean prompts have shape {clean}, the noise prompts {noise}',
      cause='prompts of different length',
      hint='Pairs.of(clean, noise) names the pair',
    )
  shapes = [np.shape(x) for x in jax.tree.leaves((pairs.clean, pairs.real))]
  if len(np.shape(pairs.real)) != 2 or any(s[:1] != shapes[-1][:1] for s in shapes):
    raise PatchingError(f'these shapes share no leading axis of pairs: {shapes}')
  if not len(pairs):
    raise PatchingError('there are no pairs')
  real = np.asarray(pairs.real, bool)
  wrong = np.flatnonzero(~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(axis=1))
  if wrong.size:
    raise PatchingError(
      f'the prompts of pair {wrong[0]} do not begin in column 0, or have padding between their tokens',
      where=f'real: {real[wrong[0]].astype(int).tolist()}',
      cause='padding before a token: the model runs without a mask, and would read the padding as text',
      hint='pad on the right, as Pairs.of does',
    )


def check_pairs(pairs: Pairs) -> None:
  """Raises PatchingError unless the argument `pairs` is of the class `Pairs`."""
  hint = 'Pairs.of(clean, noise); a method takes (params, pairs, metric), in this order'
  check_kind('pairs', pairs, Pairs, hint)


def _rows(prompts: Prompts) -> Iterable[Any]:
  """The prompts, without the padding of a batch that has a mask."""
  if isinstance(prompts, tuple) and hasattr(prompts, 'mask'):
    return [tokens[mask] for tokens, mask in zip(*map(np.asarray, prompts))]
  return prompts


def _ids(prompt: Sequence[int | np.integer] | np.ndarray | Array) -> np.ndarray:
  ids = np.asarray(prompt)
  if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in 'iu':
    raise PatchingError(f'a prompt must be a sequence of token ids, got {prompt!r}')
  return int32(ids, 'token ids')


def int32(values: ArrayLike | Ids, what: str) -> Int32[np.ndarray, ' ...']:
  """The values as int32; raises PatchingError where that would change them."""
  array = np.asarray(values)
  if array.dtype.kind not in 'iu':
    raise PatchingError(
      f'{what} must be integers, got {array.dtype}', where=f'{array.tolist()!r:.100}'
    )
  info = np.iinfo(np.int32)
  wrong = array[(array < info.min) | (array > info.max)]
  if wrong.size:
    raise PatchingError(f'{what} must be 32-bit integers, and {wrong[0]} is not')
  return array.astype(np.int32)


def _check(i: int, clean: np.ndarray, noise: np.ndarray) -> None:
  where = f'pair {i}: clean {clean.tolist()}, noise {noise.tolist()}'
  if len(clean) != len(noise):
    raise PatchingError(
      f'the prompts have {len(clean)} and {len(noise)} tokens',
      where=where,
      cause='a word that is one token in one prompt and several in the other',
      hint='choose words with the same number of tokens, so that every position has its partner',
    )
  differing = int((clean != noise).sum())
  if not differing:
    raise PatchingError('the prompts are equal, so no patch has an effect', where=where)
  for n in range(1, min(4, len(clean) - 1)):
    for a, b in ((clean[n:], noise[:-n]), (clean[:-n], noise[n:])):
      if (a != b).sum() + n < differing:
        raise PatchingError(
          f'the prompts differ in {differing} tokens, but in {(a != b).sum()} when moved by {n}',
          where=where,
          cause='a token inserted in one of them: positions mean different things',
          hint='align them, or make Pairs(clean, noise, real) yourself if the shift is intended',
        )
