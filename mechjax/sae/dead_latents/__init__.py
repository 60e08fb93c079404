"""Dead latents: counters that detect them, losses that revive them, and resampling, which replaces them.

`counters` determines which latents are dead, `losses` has AuxK and ghost gradients, `resampling` reinitialises
dead latents.
"""

from mechjax.sae.dead_latents.losses import AuxK, GhostGrads
from mechjax.sae.dead_latents.resampling import Resampling, reset_optimiser

__all__ = ['AuxK', 'GhostGrads', 'Resampling', 'reset_optimiser']
