"""End-to-end fine-tuning of finished dictionaries, against as many tokens of their own loss.

TopK dictionaries of one site are trained for reconstruction. Two further trainings begin with them and see the same
batches of contexts: one with KL and the error of later layers (`mechjax.sae.training.EndToEnd`), one with |x - x_hat|^2
alone. The question is which one the added loss falls with, and what happens to the FVU meanwhile (Braun et al. 2024).

    results = run(study)
    results['stages']['end_to_end']['k 32']['delta_loss']            [nats per token, standard error over contexts]

The weight of later layers is set on the first batch, so that their error is as large as the KL, times `later_weight`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.dictionaries import training
from experiments.dictionaries.estimates import loss_added, loss_difference
from experiments.dictionaries.study import Study
from experiments.dictionaries.training import TrainedEnsemble
from mechjax.sae import Architecture, LossOutput, Params, TopK
from mechjax.sae.architectures import HParams
from mechjax.sae.store import Contexts
from mechjax.sae.training import (
  EndToEnd,
  Ensemble,
  LoopSettings,
  Optimisation,
  Trainer,
  feed_tokens,
  restart,
  train,
)
from mechjax.sae.training.checkpoints import NoCheckpoints

NAME = 'topk'
STAGES = ('before', 'mse', 'end_to_end')


@dataclasses.dataclass(frozen=True, eq=False)
class ReconstructionObjective(EndToEnd):
  """The dictionary's own loss on batches of contexts; `forward` needs no logits."""

  def loss(
    self,
    sae: Architecture,
    observed: Any,
    params: Params,
    x: jax.Array,
    y: jax.Array | None,
    hparams: HParams | None,
    dead: jax.Array | None,
  ) -> tuple[jax.Array, LossOutput]:
    return sae.loss(params, x, y, hparams, dead)


def run(study: Study) -> dict[str, Any]:
  """All dictionaries before, after reconstruction, and after end-to-end fine-tuning."""
  base = train_base(study)
  ensembles = {NAME: base.ensemble}
  stages = {'before': base}
  for name, make in (('mse', make_reconstruction), ('end_to_end', make_end_to_end)):
    arrays = study.saved.arrays(
      f'tuned_{name}', name, functools.partial(fine_tune, study, base, make)
    )
    weight = arrays.pop('weight')
    stages[name] = training.unpack(ensembles, arrays, base.scales)[NAME]
  found = study.saved.json('end_to_end', [*stages], lambda: measure(study, stages))
  return {'stages': found, 'later_weight': float(weight), 'steps': count_steps(study)}


def train_base(study: Study) -> TrainedEnsemble:
  """The dictionaries that both fine-tunings begin with, one for each level."""
  settings = study.settings
  sae = TopK(d_in=study.subject.model.d_model, width=settings.latents, k=max(settings.levels))
  ensemble = Ensemble(
    sae=sae,
    reads=settings.site,
    seeds=(settings.seed,) * len(settings.levels),
    hparams={'k': settings.levels},
  )
  return study.train('base', {NAME: ensemble})[NAME]


def count_steps(study: Study) -> int:
  """Steps of a fine-tuning."""
  return study.settings.tuned_tokens // (study.settings.rows * study.settings.context)


def make_contexts(study: Study) -> Contexts:
  """The contexts of the training, in the form of a store."""
  rows = study.subject.trained
  return Contexts(rows, np.arange(len(rows)), study.subject.special, 'trained')


def make_reconstruction(study: Study, base: TrainedEnsemble) -> EndToEnd:
  """The objective of reconstruction alone."""
  model, site = study.subject.model, study.settings.site
  return ReconstructionObjective(
    model.truncate_at(site), model.params, site, base.scales, kl=0.0, reconstruction=1.0
  )


def make_end_to_end(study: Study, base: TrainedEnsemble) -> EndToEnd:
  """The objective with KL and later layers, whose weights are set on the first batch."""
  settings, model = study.settings, study.subject.model
  assert model.forward_from is not None
  objective = EndToEnd(
    model.apply,
    model.params,
    settings.site,
    base.scales,
    later=tuple(f'resid_post.{n}' for n in settings.later),
    kl=1.0,
    mse=1.0 if settings.later else 0.0,
    forward_from=functools.partial(model.forward_from, unroll=True),
  )
  weight = 0.0
  if settings.later:
    weight = settings.later_weight * weigh_later(study, base, objective)
  return dataclasses.replace(objective, kl=settings.kl, mse=weight)


def weigh_later(study: Study, base: TrainedEnsemble, objective: EndToEnd) -> float:
  """KL over the error of later layers, on the first batch, for the dictionary in the middle."""
  rows = study.subject.trained[: study.settings.rows]
  batch = {'tokens': rows, 'kept': study.subject.is_kept(rows)}
  sae, params = base.member(base.ensemble.members // 2)

  @jax.jit
  def measure_parts(arrays: Any, params: Params, batch: Any) -> dict[str, jax.Array]:
    acts, observed = objective.observe(arrays, batch)
    x = acts[study.settings.site]
    return objective.loss(sae, observed, params, x, None, None, None)[1].parts

  parts = measure_parts(objective.arrays, params, jax.tree.map(jax.numpy.asarray, batch))
  return float(parts['kl']) / float(parts['mse'])


def fine_tune(
  study: Study, base: TrainedEnsemble, make: Callable[[Study, TrainedEnsemble], EndToEnd]
) -> dict[str, np.ndarray]:
  """Parameters after a training that begins with `base`, and the weight of later layers."""
  settings, objective = study.settings, make(study, base)
  n = count_steps(study)
  optimisation = Optimisation(
    steps=n, learning_rate=settings.tuned_rate, warm_up_steps=n // 20, decay_steps=n // 5,
    sparsity_warm_up_steps=0,
  )  # fmt: skip
  trainer = Trainer({NAME: base.ensemble}, optimisation, objective=objective)
  contexts = make_contexts(study)

  def feed(position: int) -> Any:
    return feed_tokens(
      contexts, trainer.batch_sharding, rows=settings.rows, seed=settings.seed, position=position
    )

  result = train(
    trainer, feed, {}, NoCheckpoints(), LoopSettings(), training.ignore, None,
    begin=lambda: restart(trainer, {NAME: base.as_members()}),
  )  # fmt: skip
  found = training.pack(training.check_finished(result))
  return found | {'weight': np.array(objective.mse)}


def measure(study: Study, stages: dict[str, TrainedEnsemble]) -> dict[str, Any]:
  """Quality of all dictionaries, by stage and level; losses also compared with those of 'mse'."""
  named = {
    f'{stage} {k}': one.fold(n)
    for stage, one in stages.items()
    for n, k in enumerate(study.settings.levels)
  }
  described = study.describe(named)
  found: dict[str, Any] = {}
  for stage in stages:
    found[stage] = {}
    for k in study.settings.levels:
      own, other = described[f'{stage} {k}'], described[f'mse {k}']
      found[stage][f'k {k}'] = {
        'l0': own['l0'],
        'fvu': own['fvu'],
        'dead': own['dead'],
        'delta_loss': loss_added(own),
        'kl': loss_added(own, 'kl'),
        'against_mse': loss_difference(own, other),
      }
  return found
