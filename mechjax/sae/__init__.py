"""Sparse autoencoders and transcoders, which reconstruct activations as a sparse sum of learned directions.

An architecture is a description with pure functions; parameters are a dict of arrays:

    sae = JumpReLU(d_in=768, width=6144, sparsity=1e-3)
    params = sae.init(jax.random.key(0))
    (loss, output), grads = jax.value_and_grad(sae.loss, has_aux=True)(params, x)      x: [B, 768], E|x|^2 = 1
    f = sae.encode(params, x)                                                           [B, 6144]
    x_hat = sae.decode(params, f)
    sae, params = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
    report = evaluate(Evaluation(forward, {'resid_post.20': sae}), model_params, {'resid_post.20': params}, batches)
    trained = train(x, 'resid_post.20', [sae], optimisation=Optimisation(steps=5_000))

`architectures.base` describes their common parts and how an ensemble of them trains at once; `ops` has the array
operations beneath them, such as those that compute k active latents at the cost of k; `dead_latents` treats latents
that stop firing; `pursuit` finds latents from the decoder alone. `store` keeps activations on disk, `training` trains
on them, `evaluation` measures the quality of a dictionary, `features` collects evidence for the meaning of its latents,
`analysis` compares trained dictionaries and measures their errors and geometry, `diffing` the parts of crosscoders.
Everything here takes arrays and callables and never sees a model; only `formats` sees files, and only those in which
dictionaries are published.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import SAEError
from mechjax.sae.architectures import (
  ARCHITECTURES,
  Architecture,
  BatchTopK,
  CrossLayer,
  CrossLayerJumpReLU,
  CrossLayerTopK,
  FeatureChoice,
  Gated,
  GradientTopK,
  HParams,
  JumpReLU,
  LossOutput,
  MutualChoice,
  PAnnealing,
  Params,
  ReLU,
  TargetedJumpReLU,
  TopK,
  architecture,
)
from mechjax.sae.dead_latents import AuxK, AuxZipf, GhostGrads, Resampling, reset_optimiser
from mechjax.sae.evaluation import Evaluation, compare, evaluate, layers_of, next_tokens
from mechjax.sae.formats import (
  Metadata,
  fold,
  load,
  load_set,
  read_metadata,
  save,
  save_set,
  upload,
)
from mechjax.sae.ops.sparse import Sparse, firings
from mechjax.sae.pursuit import Pursued, Pursuit, Truncated

__all__ = [
  'ARCHITECTURES',
  'Architecture',
  'AuxK',
  'AuxZipf',
  'BatchTopK',
  'CrossLayer',
  'CrossLayerJumpReLU',
  'CrossLayerTopK',
  'Evaluation',
  'FeatureChoice',
  'Gated',
  'GhostGrads',
  'GradientTopK',
  'HParams',
  'JumpReLU',
  'LossOutput',
  'Metadata',
  'MutualChoice',
  'PAnnealing',
  'Params',
  'Pursued',
  'Pursuit',
  'ReLU',
  'Resampling',
  'SAEError',
  'Sparse',
  'TargetedJumpReLU',
  'TopK',
  'Truncated',
  'architecture',
  'compare',
  'evaluate',
  'firings',
  'fold',
  'layers_of',
  'load',
  'load_set',
  'next_tokens',
  'read_metadata',
  'reset_optimiser',
  'save',
  'save_set',
  'train',
  'upload',
]


if TYPE_CHECKING:
  from mechjax.sae.training.one_call import train
else:  # the libraries of a training take a second to import
  __getattr__, __dir__ = lazy.package(__name__, {'train': 'mechjax.sae.training.one_call'})
