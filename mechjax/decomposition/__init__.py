"""Decompositions: what each layer, head, neuron and source token contributes to an output, from one run.

Outputs of a residual stream are sums, so most questions about parts have an exact answer without another pass:

    effects = attribute_logits(acts, readout, paris, rome, weights=weights)    layers, heads, neurons: direct effects
    split_part(part, z=acts['z.5'])                                            results of single heads
    measure_composition(CompositionWeights.of(...))                            which heads read which
    read_lens(streams, unembed, targets)                                       logit lens at every layer
    lens = fit_jacobian_lens(...)                                              its linear correction (Jacobian lens)
    dfa(sae, params, [17, 4], z=z, v=v, probs=probs)                           heads and sources of a latent of z

Each function checks that the parts sum to the whole which the model computed. Arrays and tagged functions come in;
`mechjax.models.part_weights`, `head_weights` and `readers` take the weights from our decoder. `mechjax.circuits`
continues: attributions through all layers below, with attention patterns and norms as constants.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.decomposition.attention import (
  FeatureAttribution,
  LatentDirection,
  dfa,
  direction,
  head_shares,
)
from mechjax.decomposition.composition import (
  ComposedPair,
  CompositionScores,
  CompositionWeights,
  measure_composition,
)
from mechjax.decomposition.direct_logits import DirectEffects, attribute_logits
from mechjax.decomposition.lens import JacobianLens, LensTable, fit_jacobian_lens, read_lens
from mechjax.decomposition.part_writes import OutputWeights, PartWeights, PartWrites, split_part
from mechjax.errors import CircuitError

__all__ = [
  'CircuitError',
  'ComposedPair',
  'CompositionScores',
  'CompositionWeights',
  'DirectEffects',
  'FeatureAttribution',
  'JacobianLens',
  'LatentDirection',
  'LensTable',
  'OutputWeights',
  'PartWeights',
  'PartWrites',
  'attribute_logits',
  'dfa',
  'direction',
  'fit_jacobian_lens',
  'head_shares',
  'measure_composition',
  'read_lens',
  'split_part',
]

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
