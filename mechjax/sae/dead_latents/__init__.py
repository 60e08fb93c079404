"""Dead latents: counts that find them, losses that bring them back, and resampling, which replaces them.

`counters` says which latents are dead, `losses` has AuxK and ghost gradients, `resampling` starts dead latents anew.
"""

from mechjax.sae.dead_latents.losses import AuxK, GhostGrads
from mechjax.sae.dead_latents.resampling import Resampling, reset_optimiser

__all__ = ['AuxK', 'GhostGrads', 'Resampling', 'reset_optimiser']
