"""Activations for training: from texts to shuffled batches, resumable at any position.

    contexts = pack(texts('books/'), encode, length=128, bos=1, eos=2, directory='out/tokens')
    harvester = Harvester(forward, params, ['resid_post.15'], contexts)
    source = Streamed(harvester, bucket_rows=1 << 20)

or, written once and read in a different order every epoch,

    write('out/acts', harvester, plan(harvester, shard_rows=1 << 16, model='smollm2-135m'))
    source = Stored.open('out/acts', shards_per_bucket=16)

or never written, from arrays or from a function that makes blocks,

    source = InMemory({'resid_post.15': x}, batch=4096)

    for position, batch in batches(source, rows=4096, seed=0, position=0): ...

`texts` reads texts, `contexts` packs them into rows of tokens, `harvesting` computes activations of rows, `gradients`
the gradients there, `shards` stores them on disk, `in_memory` takes arrays and generators, `buckets` shuffles them into
batches, `prefetch` prepares the next batch in advance, `scales` measures the constants by which they are divided.
"""

from mechjax.sae.store.buckets import ActivationSource, Share, Streamed, batches
from mechjax.sae.store.contexts import Contexts, pack
from mechjax.sae.store.harvesting import Harvester
from mechjax.sae.store.in_memory import Generated, InMemory
from mechjax.sae.store.prefetch import Prefetch
from mechjax.sae.store.scales import Scale, measure
from mechjax.sae.store.shards import Stored, StoreMetadata, plan, write
from mechjax.sae.store.texts import texts

__all__ = [
  'ActivationSource',
  'Contexts',
  'Generated',
  'Harvester',
  'InMemory',
  'Prefetch',
  'Scale',
  'Share',
  'StoreMetadata',
  'Stored',
  'Streamed',
  'batches',
  'measure',
  'pack',
  'plan',
  'texts',
  'write',
]
