"""Differences between the parts of a crosscoder: the latents that one of two models has alone, and whether it is true.

    norms = diffing.compare_norms(sae, params)                    from the decoder; no activations
    norms.shares                                                  {'first': 0.02, 'shared': 0.91, 'second': 0.03}
    scaling = diffing.scale_latents(sae, params, batches, own=1, latents=np.flatnonzero(norms.is_second))
    scaling.is_genuine(other=0)                                   bool [A]

`norms` compares the lengths of a latent's directions, `latent_scaling` looks for the latent in the activations of the
part that seems to lack it.
"""

from mechjax.sae.diffing.latent_scaling import LatentScaling, scale_latents
from mechjax.sae.diffing.norms import NormComparison, compare_norms, norm_difference

__all__ = [
  'LatentScaling',
  'NormComparison',
  'compare_norms',
  'norm_difference',
  'scale_latents',
]
