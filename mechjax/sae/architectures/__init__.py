"""The architectures by name, as used in flags, files and tables.

Each has its own file. Transcoders, skip transcoders and Matryoshka dictionaries are settings of any of them (`base`):

    TopK(d_in=768, width=6144, k=32)                                          an autoencoder
    TopK(d_in=768, d_out=768, skip=True, width=6144, k=32)                    a skip transcoder
    BatchTopK(d_in=768, width=6144, k=32, prefixes=(768, 3072, 6144))         a Matryoshka dictionary
"""

from mechjax.errors import SAEError, unknown
from mechjax.sae.architectures.base import Architecture, HParams, LossOutput, Params
from mechjax.sae.architectures.batch_topk import BatchTopK
from mechjax.sae.architectures.gated import Gated
from mechjax.sae.architectures.jumprelu import JumpReLU
from mechjax.sae.architectures.relu import ReLU
from mechjax.sae.architectures.topk import TopK

ARCHITECTURES: dict[str, type[Architecture]] = {
  'relu': ReLU,
  'gated': Gated,
  'jumprelu': JumpReLU,
  'topk': TopK,
  'batch_topk': BatchTopK,
}


def architecture(name: str) -> type[Architecture]:
  """The architecture of a name.

  Raises:
    SAEError: the name is not known; the message lists the known ones.
  """
  if name not in ARCHITECTURES:
    raise unknown(SAEError, 'architecture', name, ARCHITECTURES)
  return ARCHITECTURES[name]


__all__ = [
  'ARCHITECTURES',
  'Architecture',
  'BatchTopK',
  'Gated',
  'HParams',
  'JumpReLU',
  'LossOutput',
  'Params',
  'ReLU',
  'TopK',
  'architecture',
]
