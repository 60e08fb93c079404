"""Several hosts: files that are made once, and arrays that are spread over all.

    with first_process():            the first process makes the files, then the others find them
      if not path.exists(): ...
    x = gather(x)                    an array of all devices on this host

With one process, nothing waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


@contextlib.contextmanager
def first_process() -> Iterator[None]:
  """Runs the block in the first process and then in the others, which find the files that it made."""
  if jax.process_index() > 0:
    wait('first')
  yield
  if jax.process_index() == 0:
    wait('first')


def wait(what: str) -> None:
  """Waits until every process reaches this point."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


def gather(x: jax.Array) -> np.ndarray:
  """Gathers an array from all devices on this host; every process calls it."""
  if x.is_fully_addressable or x.sharding.is_fully_replicated:
    return np.asarray(x)
  assert isinstance(x.sharding, NamedSharding)
  everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
  return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(x))
