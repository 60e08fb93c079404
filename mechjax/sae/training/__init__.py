"""Training dictionaries: many of them at once, on any mesh, resumable to the bit.

    trainer = Trainer({'jump': Ensemble(sae=JumpReLU(...), reads='resid_post.15')}, Optimisation(steps=100_000))
    outcome = train(trainer, feed, centres, Checkpoints('run/checkpoints'), Loop(), journal.write, dump)

`ensembles` says which dictionaries train together, `optimisation` by which rule, `step` is the pure function that is
compiled, `placement` where its arrays lie on a mesh, `loop` what is around it, `feeding` how batches get there,
`checkpoints` how it comes back, `stopping` how it is told to end, `journal` what it tells, `speed` how fast it could
be.
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
