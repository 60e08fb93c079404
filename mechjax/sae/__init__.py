"""Sparse autoencoders and transcoders: activations said as a sparse sum of learned directions.

An architecture is a description with pure functions; parameters are a dict of arrays:

    sae = JumpReLU(d_in=768, width=6144, sparsity=1e-3)
    params = sae.init(jax.random.key(0))
    (loss, outcome), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, x)      x: [B, 768], E|x|^2 = 1
    f = sae.encode(params, x)                                                           [B, 6144]
    x_hat = sae.decode(params, f)

`architectures.base` says what they share, and how several train at once; `gradients` what an update must do
beside; `dead` and `resampling` what becomes of latents that stop firing; `sparse` how k active latents are computed
at the price of k. Everything here takes arrays and never sees a model.
"""

from mechjax.sae.architectures import (
  ARCHITECTURES,
  Architecture,
  BatchTopK,
  Gated,
  JumpReLU,
  Knobs,
  Outcome,
  ReLU,
  TopK,
  architecture,
)
from mechjax.sae.dead import AuxK, GhostGrads
from mechjax.sae.errors import SAEError
from mechjax.sae.gradients import Params
from mechjax.sae.resampling import Resampling, forgotten
from mechjax.sae.sparse import Sparse, firings

__all__ = [
  'ARCHITECTURES',
  'Architecture',
  'AuxK',
  'BatchTopK',
  'Gated',
  'GhostGrads',
  'JumpReLU',
  'Knobs',
  'Outcome',
  'Params',
  'ReLU',
  'Resampling',
  'SAEError',
  'Sparse',
  'TopK',
  'architecture',
  'firings',
  'forgotten',
]
