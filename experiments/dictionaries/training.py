"""Dictionaries that the studies train, and their parameters in two units.

Every study trains with the trainer of `mechjax.sae.training` on activations in memory, all dictionaries of a step at
once. Finished trainings are kept as arrays, so that a study that was interrupted does not train them again.

    trained = unpack(ensembles, train_arrays(settings, ensembles, rows, scales), scales)
    sae, params = trained['topk'].fold(0)          for activations as the model has them
    sae, params = trained['topk'].member(0)        for activations with E|x|^2 = 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dictionaries.settings import Settings
from mechjax.errors import SAEError
from mechjax.sae import Architecture, Params
from mechjax.sae.store import InMemory, Scale
from mechjax.sae.training import Ensemble, LoopSettings, Optimisation, State, Trainer
from mechjax.sae.training.checkpoints import NoCheckpoints
from mechjax.sae.training.exporting import fold_member
from mechjax.sae.training.loop import TrainingResult
from mechjax.sae.training.runs import Schedule, run_loop
from mechjax.sae.training.state import NEVER, Members

SINCE = 'tokens_since_fired'
MAX_NORM_RATIO = 10.0
"""Longest activation that counts, in median lengths; see `mechjax.sae.store.scales`."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedEnsemble:
  """A trained ensemble.

  Attributes:
    ensemble: its settings.
    params: parameters of all members, with a leading axis.
    since: tokens since each latent last fired, int32 [N, M].
    scales: normalisation constants of its sites.
  """

  ensemble: Ensemble
  params: Params
  since: jax.Array
  scales: Mapping[str, Scale]

  def member(self, n: int) -> tuple[Architecture, Params]:
    """A dictionary for activations with E|x|^2 = 1."""
    return self.ensemble.member(n), {name: x[n] for name, x in self.params.items()}

  def fold(self, n: int) -> tuple[Architecture, Params]:
    """A dictionary for activations as the model has them, without the settings of its training."""
    one, params = fold_member(self.ensemble, n, self.params, self.scales)
    return one.for_inference(params)

  def as_members(self) -> Members:
    """The members of a state, for a training that begins with them; copies, because a step reuses its arrays."""
    params, since = jax.tree.map(lambda x: jnp.array(x, copy=True), (self.params, self.since))
    return Members(params, (), since, jnp.full(self.ensemble.members, NEVER, jnp.int32))


def make_optimisation(settings: Settings) -> Optimisation:
  """Learning rate and schedules of a training."""
  n = settings.steps
  return Optimisation(
    steps=n, learning_rate=settings.rate, warm_up_steps=n // 20, decay_steps=n // 5,
    sparsity_warm_up_steps=n // 5,
  )  # fmt: skip


def train_arrays(
  settings: Settings,
  ensembles: Mapping[str, Ensemble],
  rows: Mapping[str, np.ndarray],
  scales: Mapping[str, Scale],
) -> dict[str, np.ndarray]:
  """Trains ensembles on activations by site, [n, D]; arrays for `unpack`."""
  trainer = Trainer(ensembles, make_optimisation(settings))
  schedule = Schedule(batch=settings.batch, seed=settings.seed, loop=LoopSettings())
  source = InMemory(rows, settings.batch)
  result = run_loop(trainer, source, scales, schedule, NoCheckpoints(), ignore, None)
  return pack(check_finished(result))


def ignore(report: Any) -> None:
  """Takes a report of the loop and does nothing."""


def check_finished(result: TrainingResult) -> State:
  """The last state.

  Raises:
    SAEError: a signal stopped the training.
  """
  if not result.finished:
    raise SAEError(
      'the training was stopped by a signal', hint='the same command resumes the study'
    )
  return result.state


def pack(state: State) -> dict[str, np.ndarray]:
  """Parameters and counters of all ensembles, by 'ensemble/parameter'."""
  found: dict[str, np.ndarray] = {}
  for name, members in state.ensembles.items():
    found |= {f'{name}/{key}': np.asarray(x) for key, x in members.params.items()}
    found[f'{name}/{SINCE}'] = np.asarray(members.tokens_since_fired)
  return found


def unpack(
  ensembles: Mapping[str, Ensemble], arrays: Mapping[str, np.ndarray], scales: Mapping[str, Scale]
) -> dict[str, TrainedEnsemble]:
  """Trained ensembles by name, from the arrays of `pack`."""
  found = {}
  for name, ensemble in ensembles.items():
    start = f'{name}/'
    own = {k[len(start) :]: jnp.asarray(x) for k, x in arrays.items() if k.startswith(start)}
    since = own.pop(SINCE)
    found[name] = TrainedEnsemble(ensemble, own, since, scales)
  return found
