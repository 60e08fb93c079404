"""Activations for training: from texts to shuffled batches, resumable anywhere.

    contexts = pack(texts('books/'), encode, length=128, bos=1, eos=2, directory='out/tokens')
    harvester = Harvester(forward, params, ['resid_post.15'], contexts)
    source = Streamed(harvester, bucket_rows=1 << 20)

or, written once and read every epoch in another order,

    write('out/acts', harvester, plan(harvester, shard_rows=1 << 16, model='smollm2-135m'))
    source = Stored.open('out/acts', shards_per_bucket=16)

    for position, batch in batches(source, rows=4096, seed=0, position=0): ...

`texts` says where texts come from, `contexts` how they become rows of tokens, `harvesting` how rows become
activations, `shards` how these lie on a disk, `buckets` in which order they are taken, `prefetch` how the next batch is
there when it is wanted, `scales` what they are divided by.
"""

from mechjax.sae.store.buckets import ActivationSource, Share, Streamed, batches
from mechjax.sae.store.contexts import Contexts, pack
from mechjax.sae.store.harvesting import Harvester
from mechjax.sae.store.prefetch import Prefetch
from mechjax.sae.store.scales import Scale, measure
from mechjax.sae.store.shards import Stored, StoreMetadata, plan, write
from mechjax.sae.store.texts import texts

__all__ = [
  'ActivationSource',
  'Contexts',
  'Harvester',
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
