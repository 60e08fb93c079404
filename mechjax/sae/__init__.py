"""Sparse autoencoders and transcoders: activations said as a sparse sum of learned directions.

An architecture is a description with pure functions; parameters are a dict of arrays:

    sae = JumpReLU(d_in=768, width=6144, sparsity=1e-3)
    params = sae.init(jax.random.key(0))
    (loss, outcome), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, x)      x: [B, 768], E|x|^2 = 1
    f = sae.encode(params, x)                                                           [B, 6144]
    x_hat = sae.decode(params, f)
    sae, params = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
    report = Evaluation(forward, {'resid_post.20': sae}).evaluate(model_params, {'resid_post.20': params}, batches)

`architectures.base` says what they share, and how several train at once; `gradients` what an update must do
beside; `dead` and `resampling` what becomes of latents that stop firing; `sparse` how k active latents are computed
at the price of k. Everything here takes arrays and callables and never sees a model; `formats` sees files, those in
which dictionaries are published, and no others. `evaluate` says what a dictionary is worth, `figures` in which words.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
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
from mechjax.sae.evaluate import Evaluation
from mechjax.sae.formats import Metadata, folded, load, read_metadata, save
from mechjax.sae.gradients import Params
from mechjax.sae.resampling import Resampling, forgotten
from mechjax.sae.sparse import Sparse, firings
from mechjax.sae.sums import next_tokens

__all__ = [
  'ARCHITECTURES',
  'Architecture',
  'AuxK',
  'BatchTopK',
  'Evaluation',
  'Gated',
  'GhostGrads',
  'JumpReLU',
  'Knobs',
  'Metadata',
  'Outcome',
  'Params',
  'ReLU',
  'Resampling',
  'SAEError',
  'Sparse',
  'TopK',
  'architecture',
  'firings',
  'folded',
  'forgotten',
  'load',
  'next_tokens',
  'read_metadata',
  'save',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
