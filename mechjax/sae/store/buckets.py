"""Sources of activations for training: shuffled buckets, and a position that is one number.

Activations of one context resemble each other, so batches are taken from a BUCKET, about a million activations in
random order (Lieberum et al. 2024, section 3). There are two sources of buckets:

    Streamed     the model is run for each bucket; nothing is written
    Stored       activations are written once (`shards`), and a bucket is a random group of shards

In both cases bucket i is a pure function of i and the seed. The batches of host h of H are its rows of buckets h,
h + H, ..., and batch number `position` does not depend on those before it, so a run that was killed resumes exactly:

    for position, batch in batches(source, rows=4096, seed=0, position=1200): ...

Sharp edges: the size of a bucket must be a multiple of a host's rows per batch. Activations at the end of an epoch that
do not fill a bucket for each host are omitted in that epoch; other epochs omit others. Two buckets are in memory, the
one in use and the next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field
from mechjax.sae.store.harvesting import Harvester, Rows
from mechjax.sae.store.order import Order
from mechjax.sae.store.prefetch import Prefetch


class ActivationSource(Protocol):
  """Activations in buckets."""

  @property
  def bucket_rows(self) -> int:
    """Activations per bucket."""

  @property
  def per_epoch(self) -> int:
    """Buckets per epoch."""

  @property
  def widths(self) -> dict[str, int]:
    """D of each site."""

  def bucket(self, number: int) -> Rows:
    """Bucket `number`, from 0 without end: activations by site, [bucket_rows, D], in an unspecified order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
  """Buckets that the model computes on demand.

  Attributes:
    harvester: reads the activations.
    bucket_rows: activations per bucket.
    seed: seed of the order of the contexts in each epoch.

  Raises:
    SAEError: an empty bucket, or one with more activations than the contexts have.
  """

  harvester: Harvester
  bucket_rows: int
  seed: int = 0

  def __post_init__(self) -> None:
    check_field(self, 'bucket_rows', self.bucket_rows >= 1, 'at least 1')
    if not self.per_epoch:
      raise SAEError(
        f'a bucket of {self.bucket_rows} activations, but the contexts have {self._order(0).total}',
        hint='use smaller buckets, or more text',
      )

  @property
  def widths(self) -> dict[str, int]:
    return self.harvester.widths

  @functools.cached_property
  def per_epoch(self) -> int:
    return self._order(0).total // self.bucket_rows

  def bucket(self, number: int) -> Rows:
    epoch, n = divmod(number, self.per_epoch)
    start = n * self.bucket_rows
    numbers, skip = self._order(epoch).span(start, start + self.bucket_rows)
    return self.harvester.rows(numbers, skip, self.bucket_rows)

  @functools.cached_property
  def _counts(self) -> np.ndarray:
    return self.harvester.contexts.count_kept()

  @functools.lru_cache(maxsize=2)  # noqa: B019  a source exists as long as the run
  def _order(self, epoch: int) -> Order:
    return Order.of(self._counts, self.seed, epoch)


@dataclasses.dataclass(frozen=True)
class Share:
  """Share of this host in all batches.

  Attributes:
    index: index of this process (or stream of batches), from 0.
    count: number of processes (or streams).
  """

  index: int = 0
  count: int = 1

  def __post_init__(self) -> None:
    check_field(self, 'index', 0 <= self.index < self.count, f'from 0 to before count={self.count}')


def bucket_number(source: ActivationSource, share: Share, step: int) -> int:
  """Number of the bucket that a host reads as its `step`-th; hosts read different buckets, and complete epochs only."""
  steps_per_epoch = source.per_epoch // share.count
  if not steps_per_epoch:
    raise SAEError(
      f'{source.per_epoch} buckets for {share.count} hosts',
      hint='use smaller buckets, or more text',
    )
  epoch, n = divmod(step, steps_per_epoch)
  return epoch * source.per_epoch + n * share.count + share.index


def buckets(source: ActivationSource, share: Share, step: int) -> Iterator[tuple[int, Rows]]:
  """Buckets of a host from a step, without end."""
  while True:
    yield step, source.bucket(bucket_number(source, share, step))
    step += 1


def batches_per_bucket(source: ActivationSource, rows: int) -> int:
  """Number of batches of a host per bucket.

  Args:
    source: source of buckets.
    rows: rows of a batch on one host.

  Raises:
    SAEError: the size of a bucket is not a multiple of `rows`.
  """
  n, rest = divmod(source.bucket_rows, rows)
  if rest or not n:
    raise SAEError(
      f'buckets of {source.bucket_rows} activations are not a multiple of {rows}',
      cause='a batch has that number of rows on one host',
      hint=f'use buckets of {max(1, n) * rows}',
    )
  return n


def shuffle(bucket: Rows, rows: int, seed: int, number: int, first: int) -> Iterator[Rows]:
  """Batches of a bucket from number `first`, in an order determined by seed and number."""
  n = len(next(iter(bucket.values())))
  order = np.random.default_rng((seed, number)).permutation(n)
  for start in range(first * rows, n, rows):
    chosen = order[start : start + rows]
    yield {
      site: np.take(x, chosen, axis=0) for site, x in bucket.items()
    }  # twice as fast as x[...]


def batches(
  source: ActivationSource,
  *,
  rows: int,
  seed: int,
  position: int = 0,
  share: Share = Share(),
) -> Iterator[tuple[int, Rows]]:
  """Batches of a host from a position, without end; the next bucket is prefetched while one is used.

  Args:
    source: source of buckets.
    rows: rows of a batch on this host.
    seed: seed of the order within buckets.
    position: number of batches taken before.
    share: share of this host.

  Yields:
    The position after the batch, and activations by site, [rows, D].

  Raises:
    SAEError: the size of a bucket is not a multiple of `rows`, or there are fewer buckets than hosts.
  """
  per_bucket = batches_per_bucket(source, rows)
  step, first = divmod(position, per_bucket)
  with Prefetch(buckets(source, share, step), depth=1) as ahead:
    for step, bucket in ahead:
      for batch in shuffle(bucket, rows, seed, bucket_number(source, share, step), first):
        position += 1
        yield position, batch
      first = 0
