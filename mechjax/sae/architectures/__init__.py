"""The architectures by name, as used in flags, files and tables.

Each has its own file. Transcoders, skip transcoders and Matryoshka dictionaries are settings of any of them (`base`):

    TopK(d_in=768, width=6144, k=32)                                          an autoencoder
    TopK(d_in=768, d_out=768, skip=True, width=6144, k=32)                    a skip transcoder
    BatchTopK(d_in=768, width=6144, k=32, prefixes=(768, 3072, 6144))         a Matryoshka dictionary

Cross-layer transcoders read and reconstruct several sites (`cross_layer`), and have a table of their own:

    CrossLayerTopK(n_layers=12, d_in=768, d_out=768, width=6144, k=16)
"""

from mechjax.errors import SAEError, unknown
from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.batch_topk import BatchTopK
from mechjax.sae.architectures.cross_layer import CrossLayer
from mechjax.sae.architectures.cross_layer_jumprelu import CrossLayerJumpReLU
from mechjax.sae.architectures.cross_layer_topk import CrossLayerTopK
from mechjax.sae.architectures.feature_choice import FeatureChoice
from mechjax.sae.architectures.gated import Gated
from mechjax.sae.architectures.gradient_topk import GradientTopK
from mechjax.sae.architectures.jumprelu import JumpReLU
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.p_annealing import PAnnealing
from mechjax.sae.architectures.relu import ReLU
from mechjax.sae.architectures.targeted_jumprelu import TargetedJumpReLU
from mechjax.sae.architectures.topk import TopK

MutualChoice = BatchTopK
"""Another name of the same architecture (Ayonrinde 2024)."""

ARCHITECTURES: dict[str, type[Architecture]] = {
  'relu': ReLU,
  'gated': Gated,
  'jumprelu': JumpReLU,
  'topk': TopK,
  'batch_topk': BatchTopK,
  'feature_choice': FeatureChoice,
  'gradient_topk': GradientTopK,
  'targeted_jumprelu': TargetedJumpReLU,
  'mutual_choice': MutualChoice,
}

CROSS_LAYER: dict[str, type[CrossLayer]] = {
  'clt_topk': CrossLayerTopK,
  'clt_jumprelu': CrossLayerJumpReLU,
}
"""Architectures of several sites, by name."""


def architecture(name: str) -> type[Architecture]:
  """The architecture of a name.

  Raises:
    SAEError: the name is not known; the message lists the known ones.
  """
  known = {**ARCHITECTURES, **CROSS_LAYER}
  if name not in known:
    raise unknown(SAEError, 'architecture', name, known)
  return known[name]


__all__ = [
  'ARCHITECTURES',
  'CROSS_LAYER',
  'Architecture',
  'BatchTopK',
  'CrossLayer',
  'CrossLayerJumpReLU',
  'CrossLayerTopK',
  'FeatureChoice',
  'Gated',
  'GradientTopK',
  'HParams',
  'JumpReLU',
  'LossOutput',
  'MutualChoice',
  'PAnnealing',
  'Params',
  'ReLU',
  'TargetedJumpReLU',
  'TopK',
  'architecture',
]
