"""Batches on the devices before they are asked for.

Rows are gathered, brought to float32, divided by the scale of their site, rid of those that are too long
(`store.scales`) and sent to the devices in a thread, while the step before runs.

A batch is made of STREAMS: each takes every so-many-th bucket, and a batch is the rows of stream 0, then those of
stream 1, and so on. Each host reads its share of the streams, and together the hosts' rows are one array spread over
the axis 'data' of the mesh. Since the number of streams belongs to the run and not to the machines, one host and four
see the same batches.
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
  """Batches from a position on, made ahead; to be used in a `with`.

  Args:
    source: of buckets.
    scales: what each site is divided by.
    sharding: of a batch, [B, D].
    batch: B, of all hosts together.
    streams: of how many streams a batch is made.
    seed: decides the order within buckets.
    position: how many batches were taken before.

  Returns:
    An iterator of the position after a batch, and the batch by site.

  Raises:
    SAEError: hosts, streams and batch that do not divide each other.
  """
  host, hosts = jax.process_index(), jax.process_count()
  if batch % streams or streams % hosts:
    raise SAEError(
      f'a batch of {batch} tokens from {streams} streams on {hosts} hosts',
      hint='as many streams as hosts or a multiple of that, and a batch that is a multiple of them',
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
  """Activations as a dictionary is trained on them: float32, with a mean square length of 1, and none too long.

  A token that is too long gives its place to one of the others, which is then there twice, so that a batch keeps its
  size.

  Raises:
    SAEError: all tokens are too long.
  """
  count = select_tokens(rows, {site: scale.limit for site, scale in scales.items()})
  if not count.any():
    raise SAEError(
      f'all {len(count)} activations of a batch are longer than {[s.limit for s in scales.values()]}',
      cause='scales of another model or site',
    )
  if not count.all():
    chosen = np.arange(len(count))
    chosen[~count] = np.resize(np.flatnonzero(count), np.count_nonzero(~count))
    rows = {site: x[chosen] for site, x in rows.items()}
  return {
    site: x.astype(np.float32) * np.float32(1 / scales[site].scale) for site, x in rows.items()
  }
