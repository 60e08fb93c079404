"""Batches of tokens for objectives that run a model (`end_to_end`), from a position that is one number.

    with feed_tokens(contexts, sharding, rows=16, seed=0, position=120) as batches:
      for position, batch in batches: ...               {'tokens': int32 [16, T], 'kept': bool [16, T]}

Contexts are shuffled anew in every epoch, and batch `position` does not depend on those before it, so a training that
was stopped continues with the batch that it would have had.

Sharp edge: contexts that do not fill a batch at the end of an epoch are omitted in that epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.store import Contexts, Prefetch
from mechjax.sae.training.feeding import PositionedBatch


def feed_tokens(
  contexts: Contexts, sharding: jax.sharding.Sharding, *, rows: int, seed: int, position: int
) -> Prefetch[PositionedBatch]:
  """Prefetches batches from a position; use it in a `with` block.

  Args:
    contexts: contexts to train on.
    sharding: sharding of a batch.
    rows: contexts of a batch.
    seed: seed of the order of contexts.
    position: number of batches taken before.

  Returns:
    An iterator of the position after a batch, and the batch: 'tokens', int32 [rows, T], and 'kept', bool [rows, T].

  Raises:
    SAEError: there are fewer contexts than a batch has.
  """
  per_epoch = len(contexts) // rows if rows >= 1 else 0
  if not per_epoch:
    raise SAEError(
      f'{len(contexts)} contexts do not fill a batch of {rows}',
      hint='more text, or smaller batches',
    )

  def send() -> Iterator[PositionedBatch]:
    at, shuffled, of_epoch = position, np.empty(0, np.int64), -1
    while True:
      epoch, n = divmod(at, per_epoch)
      if epoch != of_epoch:
        shuffled = np.random.default_rng((seed, epoch)).permutation(len(contexts))
        of_epoch = epoch
      tokens = contexts.tokens(shuffled[n * rows : (n + 1) * rows])
      batch = {'tokens': tokens, 'kept': contexts.is_kept(tokens)}
      at += 1
      yield at, {name: jax.device_put(x, sharding) for name, x in batch.items()}

  return Prefetch(send(), depth=2)
