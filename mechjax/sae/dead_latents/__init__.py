"""Dead latents: counters that detect them, losses that revive them, and resampling, which replaces them.

`counters` determines which latents are dead, `losses` has AuxK and ghost gradients, `zipf` a loss on rare
latents, `resampling` reinitialises dead latents. A loss of your own has the methods of `architectures.losses.AuxLoss`.
"""

from mechjax.sae.dead_latents.losses import AuxK, GhostGrads
from mechjax.sae.dead_latents.resampling import Resampling, reset_optimiser
from mechjax.sae.dead_latents.zipf import AuxZipf

__all__ = ['AuxK', 'AuxZipf', 'GhostGrads', 'Resampling', 'reset_optimiser']
