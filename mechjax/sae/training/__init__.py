"""Training of dictionaries: many at once, on any mesh, resumable bit for bit.

    trainer = Trainer({'jump': Ensemble(sae=JumpReLU(...), reads='resid_post.15')}, Optimisation(steps=100_000))
    result = train(trainer, feed, centres, Checkpoints('run/checkpoints'), LoopSettings(), journal.write, dump)

`ensembles` defines the dictionaries that train together, `mfr` makes them agree, `optimisation` is the update rule,
`step` the pure function that is compiled and `state` its state, `selecting` finds the arrays of an ensemble in a batch,
`objectives` is the protocol of other losses, `end_to_end` a loss that runs a model on the reconstructions, `restarting`
trainings of dictionaries that are trained already, `placement` the sharding of arrays on a mesh, `loop` the loop around
it, `feeding` the input of batches and `token_batches` that of batches of tokens, `checkpoints` saving and resuming,
`stopping` the handling of signals, `journal` the logs, `speed` the maximum speed. `one_call` does all of this in one
call, `mechjax.sae.train`: `inputs` finds the activations, `grouping` makes ensembles of a list of architectures, `runs`
joins the parts, `calls` binds a directory, `figures` measures the result, `exporting` writes it, and `hosts` lets
several processes share files.
"""

from mechjax.sae.training.checkpoints import Checkpoints
from mechjax.sae.training.end_to_end import EndToEnd
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.feeding import apply_scales, feed
from mechjax.sae.training.journal import Journal, TensorBoard, WandB
from mechjax.sae.training.loop import LoopSettings, TrainingReport, TrainingResult, train
from mechjax.sae.training.mfr import MFR
from mechjax.sae.training.objectives import Objective
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.restarting import restart
from mechjax.sae.training.state import Metrics, State
from mechjax.sae.training.step import Trainer
from mechjax.sae.training.token_batches import feed_tokens

__all__ = [
  'MFR',
  'Checkpoints',
  'EndToEnd',
  'Ensemble',
  'Journal',
  'LoopSettings',
  'Metrics',
  'Objective',
  'Optimisation',
  'State',
  'TensorBoard',
  'Trainer',
  'TrainingReport',
  'TrainingResult',
  'WandB',
  'apply_scales',
  'feed',
  'feed_tokens',
  'restart',
  'train',
]
