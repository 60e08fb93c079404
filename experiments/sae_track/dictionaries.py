"""Dictionaries of all checkpoints, each trained further from the next later one.

The dictionary of the last checkpoint is trained from scratch. Those of the earlier ones begin with its parameters, from
the later to the earlier, as in the code of Xu et al. 2024 (arXiv 2412.17626), with a new optimiser and few steps. So a
latent has one number at all checkpoints.

Directions move in a training even if the model stays as it is. As a control, the dictionary of the last checkpoint is
trained further on the last checkpoint itself, with as many steps.

Activations of each checkpoint are divided by their root mean square length, which changes no cosine.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sae_track import language
from experiments.sae_track.settings import Settings
from mechjax.errors import SAEError
from mechjax.sae import TopK
from mechjax.sae.training import Ensemble, Optimisation, Trainer

NAME, SCALE = 'topk', 'scale'
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedCheckpoints:
  """Dictionaries of all checkpoints.

  Attributes:
    params: their parameters, in the order of training of the model.
    scales: root mean square length of the activations of each.
    again: parameters of the last one after as many steps more at the last checkpoint.
  """

  params: list[dict[str, np.ndarray]]
  scales: list[float]
  again: dict[str, np.ndarray]


def describe_dictionary(settings: Settings) -> TopK:
  """The architecture."""
  return TopK(d_in=settings.width, width=settings.latents, k=settings.k)


def select_model(models: Any, t: int) -> Any:
  """Parameters of the model at a checkpoint, of those with a leading axis of checkpoints."""
  return jax.tree.map(lambda x: jnp.asarray(x[t]), models)


def train_dictionaries(
  settings: Settings, models: Any, rows: np.ndarray, save: Callable[..., Arrays]
) -> TrainedCheckpoints:
  """Trains the dictionaries, from the last checkpoint to the first.

  Args:
    settings: the settings.
    models: parameters of the model, with a leading axis of checkpoints.
    rows: training contexts.
    save: (name, compute=) -> arrays, from the file of that name or computed.
  """
  last = len(jax.tree.leaves(models)[0]) - 1
  read = language.make_reader(settings)

  def train(name: str, t: int, start: Arrays | None, seed: int) -> Arrays:
    return save(
      name, compute=lambda: train_one(settings, select_model(models, t), rows, read, start, seed)
    )

  found: list[Arrays] = []
  for t in reversed(range(last + 1)):
    found.append(train(f'dictionary_{t}', t, found[-1] if found else None, t))
  again = train('dictionary_again', last, found[0], last + 1)
  return TrainedCheckpoints(
    [take_params(one) for one in reversed(found)],
    [float(one[SCALE]) for one in reversed(found)],
    take_params(again),
  )


def take_params(arrays: Arrays) -> dict[str, np.ndarray]:
  """The parameters among the arrays of `train_one`."""
  return {key: x for key, x in arrays.items() if key != SCALE}


@functools.cache
def make_trainer(settings: Settings, steps: int) -> Trainer:
  """The trainer of all dictionaries with as many steps, which compiles once."""
  ensemble = Ensemble(
    sae=describe_dictionary(settings), reads=settings.site, seeds=(settings.seed,)
  )
  warm_up = max(1, steps // 20)
  return Trainer(
    {NAME: ensemble}, Optimisation(steps=steps, warm_up_steps=warm_up, sparsity_warm_up_steps=0)
  )


def train_one(
  settings: Settings,
  model: Any,
  rows: np.ndarray,
  read: Callable[[Any, np.ndarray], np.ndarray],
  start: Arrays | None,
  seed: int,
) -> dict[str, np.ndarray]:
  """Trains one dictionary, from given parameters if there are some; its parameters, and the scale of its activations.

  Args:
    settings: the settings.
    model: parameters of the model.
    rows: training contexts.
    read: activations of contexts.
    start: parameters to begin with; None to train from scratch, with `first_steps`.
    seed: second seed of the order of contexts.

  Raises:
    SAEError: a loss is not finite.
  """
  steps = settings.first_steps if start is None else settings.next_steps
  trainer = make_trainer(settings, steps)
  state = trainer.init()
  if start is not None:
    given = {key: jnp.array(value)[None] for key, value in take_params(start).items()}
    own = dataclasses.replace(state.ensembles[NAME], params=given)
    state = dataclasses.replace(state, ensembles={NAME: own})
  x = read(model, rows[: 4 * settings.n_rows])
  scale = float(np.sqrt(np.square(x, dtype=np.float64).sum(-1).mean()))
  random = np.random.default_rng([settings.seed, seed])
  for _ in range(steps):
    chosen = rows[random.integers(0, len(rows), settings.n_rows)]
    x = read(model, chosen).reshape(-1, settings.width)[: settings.tokens]
    state, _ = trainer.step(state, {settings.site: jnp.asarray(x / np.float32(scale))})
  if not bool(state.ok):
    raise SAEError(f'the loss of a dictionary is not finite at step {int(state.bad_step)}')
  params = state.ensembles[NAME].params
  return {SCALE: np.array(scale), **{key: np.asarray(x[0]) for key, x in params.items()}}
