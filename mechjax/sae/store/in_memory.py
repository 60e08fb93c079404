"""Activations for training that are not on disk: arrays, or blocks that a generator makes.

    source = InMemory({'resid_post.15': x}, batch=4096)                              x: [n, D]
    source = Generated(lambda: make_blocks(seed=0), bucket_rows=1 << 18)            blocks: {'resid_post.15': [m, D]}

Both are sources of buckets like those on disk (`buckets`), so that a training neither knows nor needs the difference.

Arrays are one bucket, which is not copied: batches take their rows from it in another order each epoch. Blocks of any
sizes are joined and cut into buckets; the order within a bucket is random, and that of the buckets is the generator's.

Sharp edges. Of n activations that are not a multiple of the batch, the last few are left out in one epoch, and the
first few in the next. A generator is read in order: a training that resumes makes all blocks before its position again,
so a function that returns the same blocks each time is needed; an iterator that runs once cannot be resumed. A
generator that ends is started again, as the next epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.checks import check_field
from mechjax.sae.store.harvesting import Rows
from mechjax.sae.store.prefetch import give_up_if_closed

Blocks = Callable[[], Iterable[Mapping[str, Any]]]
_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory:
  """Arrays as one bucket; a source for `batches`.

  Attributes:
    arrays: activations by site, [n, D] each, of the same tokens: float32, float16 or bfloat16.
    batch: tokens of a batch, which a bucket is a multiple of.

  Raises:
    SAEError: no arrays, arrays of other shapes or dtypes, numbers that are not finite, or fewer than one batch.
  """

  arrays: Mapping[str, np.ndarray]
  batch: int

  def __post_init__(self) -> None:
    check_field(self, 'batch', self.batch >= 1, 'at least 1')
    object.__setattr__(self, 'arrays', check_rows(self.arrays))
    if self._n < self.batch:
      raise SAEError(
        f'{self._n} activations for batches of {self.batch}',
        hint='a smaller batch, or more activations',
      )

  @property
  def bucket_rows(self) -> int:
    return self._n // self.batch * self.batch

  @property
  def per_epoch(self) -> int:
    return 1

  @property
  def widths(self) -> dict[str, int]:
    return {site: x.shape[1] for site, x in self.arrays.items()}

  def bucket(self, number: int) -> Rows:
    first = (self._n - self.bucket_rows) * (number % 2)
    return {site: x[first : first + self.bucket_rows] for site, x in self.arrays.items()}

  @functools.cached_property
  def digest(self) -> str:
    """Digest of all numbers."""
    return digest_rows(self.arrays)

  @property
  def _n(self) -> int:
    return len(next(iter(self.arrays.values())))


class Generated:
  """Buckets of the blocks that a function makes; a source for `batches` with one stream.

  Attributes:
    bucket_rows: activations per bucket.
    per_epoch: buckets per epoch, which is not known and counts as infinite.
    widths: D of each site, from the first block.
  """

  per_epoch = sys.maxsize

  def __init__(self, blocks: Blocks | Iterator[Mapping[str, Any]], bucket_rows: int):
    """Reads the first bucket.

    Args:
      blocks: function that returns an iterable of blocks, activations by site, [m, D], the same each time; or an
        iterator, which runs once.
      bucket_rows: activations per bucket.

    Raises:
      SAEError: the blocks are not arrays by site, or those of two blocks differ in sites, widths or dtype.
    """
    self.bucket_rows = bucket_rows
    check_field(self, 'bucket_rows', bucket_rows >= 1, 'at least 1')
    self._blocks = blocks
    self._made: Iterator[Mapping[str, Any]] = iter(())
    self._rest: Rows = {}
    self._number, self._started, self._bucket = -1, False, Rows()
    self.widths = {site: x.shape[1] for site, x in self.bucket(0).items()}

  @property
  def restartable(self) -> bool:
    """Whether blocks can be made again."""
    return callable(self._blocks)

  def bucket(self, number: int) -> Rows:
    """Bucket `number`; one before the newest is made again from the start.

    Raises:
      SAEError: an iterator has ended, or would have to start again; wrong blocks.
    """
    if number < self._number:
      self._start()
      self._number, self._rest = -1, {}
    while self._number < number:
      give_up_if_closed()
      self._bucket = self._fill()
      self._number += 1
    return self._bucket

  def _fill(self) -> Rows:
    parts = [self._rest] if self._rest else []
    n = sum(map(_count, parts))
    while n < self.bucket_rows:
      block = self._next_block()
      if parts and (_describe(block) != _describe(parts[0])):
        raise SAEError(
          f'a block of {_describe(block)} after blocks of {_describe(parts[0])}',
          hint='every block has the same sites, widths and dtypes',
        )
      parts.append(block)
      n += _count(block)
    joined = {site: np.concatenate([part[site] for part in parts]) for site in parts[0]}
    self._rest = {site: x[self.bucket_rows :] for site, x in joined.items()}
    return {site: x[: self.bucket_rows] for site, x in joined.items()}

  def _next_block(self) -> Rows:
    for _ in range(2):
      if (block := next(self._made, None)) is not None:
        # A generator may fill the same array again, so the block is copied.
        return {site: x.copy() for site, x in check_rows(block).items()}
      self._start()
    raise SAEError('a generator of activations without a block')

  def _start(self) -> None:
    if callable(self._blocks):
      self._made = iter(check_blocks(self._blocks()))
    elif not self._started:
      self._made = iter(self._blocks)
    else:
      raise SAEError(
        f'an iterator of activations has ended, or is needed from its start again, after bucket {self._number}',
        cause=f'buckets of {self.bucket_rows} activations; an iterator runs only once',
        hint='give a function that returns an iterator: lambda: make_blocks(seed=0)',
      )
    self._started = True


def check_blocks(made: Any) -> Iterable[Any]:
  """Returns what a function of activations made; raises SAEError unless it is an iterable of blocks."""
  if not isinstance(made, Iterable):
    raise SAEError(
      f'a function of activations returned {made!r:.100}',
      cause='expected an iterable of blocks',
      hint='lambda: [x], or a function with yield',
    )
  return made


def check_rows(rows: Mapping[str, Any]) -> Rows:
  """Checks activations by site; returns them as arrays of NumPy.

  Args:
    rows: activations by site, [n, D] each, of the same tokens.

  Raises:
    SAEError: no site or no activation, another shape or dtype, different numbers of tokens, or numbers that are not
      finite.
  """
  if not isinstance(rows, Mapping) or not rows:
    raise SAEError(
      f'{rows!r:.100} is not activations by site', hint="{'resid_post.15': x} with x [n, D]"
    )
  found = {site: as_host(f'activations of {site!s}', x, SAEError) for site, x in rows.items()}
  for site, x in found.items():
    floats = x.dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
    if x.ndim != 2 or not x.size or not floats:
      raise SAEError(
        f'activations of {site!s} are {x.dtype} {list(x.shape)}; expected [n, D] of float32, float16 or bfloat16',
        hint='x.reshape(-1, x.shape[-1]).astype(np.float32)',
      )
    _check_finite(site, x)
  if len({len(x) for x in found.values()}) > 1:
    raise SAEError(
      f'different numbers of tokens: { {site: len(x) for site, x in found.items()} }',
      cause='activations of all sites are those of the same tokens',
    )
  return found


def digest_rows(rows: Mapping[str, np.ndarray]) -> str:
  """Digest of activations: of their sites, shapes, dtypes and bytes."""
  digest = hashlib.sha256()
  for site, x in sorted(rows.items()):
    digest.update(f'{site} {x.shape} {x.dtype}'.encode())
    for start in range(0, len(x), _ROWS):
      digest.update(np.ascontiguousarray(x[start : start + _ROWS]).view(np.uint8))
  return digest.hexdigest()


def _check_finite(site: str, x: np.ndarray) -> None:
  for start in range(0, len(x), _ROWS):
    if not np.isfinite(x[start : start + _ROWS].astype(np.float32)).all():
      raise SAEError(
        f'activations of {site} are not finite',
        where=f'one of the rows {start} to {min(start + _ROWS, len(x)) - 1}',
        cause='NaN or infinity, or a site that overflows in a small dtype',
      )


def _count(rows: Rows) -> int:
  return len(next(iter(rows.values())))


def _describe(rows: Rows) -> dict[str, str]:
  return {site: f'{x.dtype} width {x.shape[1]}' for site, x in sorted(rows.items())}
