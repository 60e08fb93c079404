"""Training of dictionaries: many at once, on any mesh, resumable bit for bit.

    trainer = Trainer({'jump': Ensemble(sae=JumpReLU(...), reads='resid_post.15')}, Optimisation(steps=100_000))
    result = train(trainer, feed, centres, Checkpoints('run/checkpoints'), LoopSettings(), journal.write, dump)

`ensembles` defines the dictionaries that train together, `optimisation` the update rule, `step` the pure function that
is compiled, `placement` the sharding of its arrays on a mesh, `loop` the loop around it, `feeding` the input of
batches, `checkpoints` saving and resuming, `stopping` the handling of signals, `journal` the logs, `speed` the maximum
speed. `one_call` does all of this in one call, `mechjax.sae.train`: `inputs` finds the activations, `grouping` makes
ensembles of a list of architectures, `runs` joins the parts, `calls` binds a directory, `figures` measures the result,
`exporting` writes it, and `hosts` lets several processes share files.
"""

from mechjax.sae.training.checkpoints import Checkpoints
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.feeding import apply_scales, feed
from mechjax.sae.training.journal import Journal, TensorBoard, WandB
from mechjax.sae.training.loop import LoopSettings, TrainingReport, TrainingResult, train
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.step import Metrics, State, Trainer

__all__ = [
  'Checkpoints',
  'Ensemble',
  'Journal',
  'LoopSettings',
  'Metrics',
  'Optimisation',
  'State',
  'TensorBoard',
  'Trainer',
  'TrainingReport',
  'TrainingResult',
  'WandB',
  'apply_scales',
  'feed',
  'train',
]
