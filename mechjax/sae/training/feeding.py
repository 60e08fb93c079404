"""Batches on the devices before they are asked for.

Rows are gathered, brought to float32, divided by the scale of their site and sent to the devices in a thread, while
the step before runs.

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

from mechjax.sae.errors import SAEError
from mechjax.sae.store import Prefetch, Scale, Share, Source, batches
from mechjax.sae.store.harvesting import Rows

Fed = tuple[int, dict[str, jax.Array]]


def fed(
  source: Source,
  scales: Mapping[str, Scale],
  sharding: NamedSharding,
  *,
  batch: int,
  streams: int,
  seed: int,
  position: int,
) -> Prefetch[Fed]:
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
      mend='as many streams as hosts or a multiple of that, and a batch that is a multiple of them',
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

  def sent() -> Iterator[Fed]:
    for parts in zip(*own):
      rows = {
        site: np.concatenate([_scaled(part[site], scales[site]) for _, part in parts])
        for site in source.widths
      }
      on_devices = {
        site: jax.make_array_from_process_local_data(sharding, x) for site, x in rows.items()
      }
      yield parts[0][0], on_devices

  return Prefetch(sent(), depth=2)


def scaled(rows: Rows, scales: Mapping[str, Scale]) -> Rows:
  """Activations as a dictionary is trained on them: float32, with a mean square length of 1."""
  return {site: _scaled(x, scales[site]) for site, x in rows.items()}


def _scaled(x: np.ndarray, scale: Scale) -> np.ndarray:
  return x.astype(np.float32) * np.float32(1 / scale.scale)
