"""Prefetched batches on the devices.

A thread gathers rows, converts them to float32, divides them by the scale of their site, replaces those that are too
long (`store.scales`) and sends them to the devices, while the previous step runs.

A batch is made of STREAMS: with S streams each takes every S-th bucket, and a batch is the rows of stream 0, then those
of stream 1, and so on. Each host reads its share of the streams, and together the rows of the hosts are one array
sharded over the axis 'data' of the mesh. The number of streams is a setting of the run and independent of the machines,
so one host and four see the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from mechjax.errors import SAEError
from mechjax.sae.store import ActivationSource, Prefetch, Scale, Share, batches
from mechjax.sae.store.harvesting import Rows
from mechjax.sae.store.scales import select_tokens

PositionedBatch = tuple[int, dict[str, jax.Array]]


def feed(
  source: ActivationSource,
  scales: Mapping[str, Scale],
  sharding: NamedSharding,
  *,
  batch: int,
  streams: int,
  seed: int,
  position: int,
) -> Prefetch[PositionedBatch]:
  """Prefetches batches from a position; use it in a `with` block.

  Args:
    source: source of buckets.
    scales: scale of each site.
    sharding: sharding of a batch, [B, D].
    batch: B, for all hosts together.
    streams: number of streams of a batch.
    seed: seed of the order within buckets.
    position: number of batches taken before.

  Returns:
    An iterator of the position after a batch, and the batch by site.

  Raises:
    SAEError: numbers of hosts, streams and tokens that do not divide each other.
  """
  host, hosts = jax.process_index(), jax.process_count()
  if batch % streams or streams % hosts:
    raise SAEError(
      f'a batch of {batch} tokens from {streams} streams on {hosts} hosts',
      hint='set streams to a multiple of the number of hosts, and batch to a multiple of streams',
    )
  own = [
    batches(
      source,
      rows=batch // streams,
      seed=seed,
      position=position,
      share=Share(stream, streams),
    )
    for stream in range(host * streams // hosts, (host + 1) * streams // hosts)
  ]

  def send() -> Iterator[PositionedBatch]:
    for parts in zip(*own):
      rows = [apply_scales(part, scales) for _, part in parts]
      whole = {site: np.concatenate([part[site] for part in rows]) for site in source.widths}
      on_devices = {
        site: jax.make_array_from_process_local_data(sharding, x) for site, x in whole.items()
      }
      yield parts[0][0], on_devices

  return Prefetch(send(), depth=2)


def apply_scales(rows: Rows, scales: Mapping[str, Scale]) -> Rows:
  """Scales activations for training: float32, with a mean square length of 1, without those that are too long.

  A token that is too long is replaced by another token of the batch, which then occurs twice, so that the batch keeps
  its size.

  Raises:
    SAEError: all tokens are too long.
  """
  selected = select_tokens(rows, {site: scale.limit for site, scale in scales.items()})
  if not selected.any():
    raise SAEError(
      f'all {len(selected)} activations of a batch are longer than {[s.limit for s in scales.values()]}',
      cause='the scales are those of another model or site',
    )
  if not selected.all():
    chosen = np.arange(len(selected))
    chosen[~selected] = np.resize(np.flatnonzero(selected), np.count_nonzero(~selected))
    rows = {site: x[chosen] for site, x in rows.items()}
  return {
    site: x.astype(np.float32) * np.float32(1 / scales[site].scale) for site, x in rows.items()
  }
