"""Dictionaries of all checkpoints, each trained further from the next later one.

The dictionary of the last checkpoint is trained from scratch. Those of the earlier ones begin with its parameters, from
the later to the earlier, as in the code of Xu et al. 2024 (arXiv 2412.17626), with a new optimiser and few steps. So a
latent has one number at all checkpoints.

Activations of each checkpoint are divided by their root mean square length, which changes no cosine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sae_track.settings import Settings
from mechjax.sae import TopK
from mechjax.sae.training import Ensemble, Optimisation, Trainer

Read = Callable[[Any, np.ndarray], np.ndarray]
NAME = 'topk'


def describe_dictionary(settings: Settings) -> TopK:
  """The architecture."""
  return TopK(d_in=settings.width, width=settings.latents, k=settings.k)


def measure_scale(read: Read, model: Any, rows: np.ndarray) -> float:
  """Root mean square length of activations."""
  x = read(model, rows)
  return float(np.sqrt(np.square(x, dtype=np.float64).sum(-1).mean()))


def train_dictionaries(
  settings: Settings, models: Any, rows: np.ndarray, read: Read
) -> dict[str, np.ndarray]:
  """Parameters of the dictionaries, and the scale of each checkpoint, with a leading axis of checkpoints.

  Args:
    settings: the settings.
    models: parameters of the model, with a leading axis of checkpoints.
    rows: training contexts.
    read: activations of contexts.
  """
  n = len(jax.tree.leaves(models)[0])
  found: list[dict[str, np.ndarray]] = []
  params = None
  for t in reversed(range(n)):
    model = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), models)
    scale = measure_scale(read, model, rows[: 4 * settings.batch])
    params = _train(settings, model, rows, read, scale, params, t)
    found.append({'scale': np.array(scale), **{k: np.asarray(v) for k, v in params.items()}})
  return {key: np.stack([one[key] for one in reversed(found)]) for key in found[0]}


def _train(
  settings: Settings, model: Any, rows: np.ndarray, read: Read, scale: float, params: Any, t: int
) -> dict[str, jax.Array]:
  """Trains one dictionary, from given parameters if there are some."""
  steps = settings.first_steps if params is None else settings.next_steps
  ensemble = Ensemble(
    sae=describe_dictionary(settings), reads=settings.site, seeds=(settings.seed,)
  )
  warm_up = max(1, steps // 20)
  trainer = Trainer(
    {NAME: ensemble}, Optimisation(steps=steps, warm_up_steps=warm_up, sparsity_warm_up_steps=0)
  )
  state = trainer.init()
  if params is not None:
    given = {key: jnp.array(value)[None] for key, value in params.items()}
    own = dataclasses.replace(state.ensembles[NAME], params=given)
    state = dataclasses.replace(state, ensembles={NAME: own})
  random = np.random.default_rng([settings.seed, t])
  n_rows = -(-settings.tokens // (rows.shape[1] - 1))
  for _ in range(steps):
    x = read(model, rows[random.integers(0, len(rows), n_rows)]).reshape(-1, settings.width)
    batch = jnp.asarray(x[: settings.tokens] / np.float32(scale))
    state, _ = trainer.step(state, {settings.site: batch})
  return {key: value[0] for key, value in state.ensembles[NAME].params.items()}
