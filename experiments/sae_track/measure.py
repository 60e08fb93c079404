"""Drift and formation of the latents on held-out contexts, and the quality of every dictionary.

A latent of the last checkpoint has its most active tokens. Those of some latents are nearly all one byte, and such
tokens are similar before any training; those of others are different bytes in similar contexts. Formation is therefore
also reported for each group: `one byte`, where the most frequent byte has at least 0.9 of the tokens, and `several`.

Latents that are active on fewer tokens are left out everywhere: a latent that is never active keeps its direction, and
would count as one that has settled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dictionaries.estimates import Pair, average
from experiments.sae_track import dictionaries, language
from experiments.sae_track.dictionaries import TrainedCheckpoints
from experiments.sae_track.settings import Settings
from mechjax.sae.analysis import Drift, Formation, find_top_tokens, measure_drift, measure_formation
from mechjax.sae.analysis.estimates import divide

PURE = 0.9


def measure(
  settings: Settings, models: Any, trained: TrainedCheckpoints, held_out: np.ndarray
) -> tuple[Drift, Formation, dict[str, Any]]:
  """Drift, formation, and plain results by checkpoint.

  Args:
    settings: the settings.
    models: parameters of the model, with a leading axis of checkpoints.
    trained: dictionaries of all checkpoints.
    held_out: held-out contexts.
  """
  acts, latents, quality = measure_checkpoints(settings, models, trained, held_out)
  top = find_top_tokens(latents, settings.top)
  drift = measure_drift([params['W_dec'][top.latents] for params in trained.params])
  moved = [params['W_dec'][top.latents] for params in (trained.again, trained.params[-1])]
  drawn = np.random.default_rng(settings.seed).choice(len(latents), min(500, len(latents)), False)
  formation = measure_formation(acts, top, drawn)
  ids = held_out[:, 1:].reshape(-1)[top.tokens]
  purity = np.array([np.bincount(row).max() / len(row) for row in ids])
  groups = {'one byte': purity >= PURE, 'several': purity < PURE}
  return drift, formation, {
    'steps': settings.saved_steps,
    **quality,
    'to_last': average_rows(drift.to_last),
    'to_next': average_rows(drift.to_next),
    'again': average_rows(measure_drift(moved).to_next)[0],
    'random': np.stack([formation.random, formation.random_error], 1).tolist(),
    'latents': {name: int(mask.sum()) for name, mask in groups.items()},
    'left_out': settings.latents - len(top.latents),
    'progress': {
      name: average_rows(formation.progress[:, mask]) for name, mask in groups.items() if mask.any()
    },
  }  # fmt: skip


def average_rows(values: np.ndarray) -> list[Pair]:
  """Mean and standard error of each row."""
  return [average(row.tolist()) for row in values]


def measure_checkpoints(
  settings: Settings, models: Any, trained: TrainedCheckpoints, held_out: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, dict[str, list[Pair]]]:
  """Activations of each checkpoint, [tokens, D]; latents of the last one, [tokens, M]; losses and FVU, with errors."""
  sae, read = dictionaries.describe_dictionary(settings), language.make_reader(settings)
  measure_losses = jax.jit(language.measure_losses, static_argnums=0)
  acts, latents = [], np.zeros((0, 0))
  losses: list[Pair] = []
  fvus: list[Pair] = []
  for t, (params, scale) in enumerate(zip(trained.params, trained.scales)):
    model = dictionaries.select_model(models, t)
    x = read(model, held_out) / np.float32(scale)
    flat = x.reshape(-1, settings.width)
    own = jax.tree.map(jnp.asarray, params)
    f = sae.encode(own, jnp.asarray(flat))
    error = x - np.asarray(sae.decode(own, f)).reshape(x.shape)
    centred = x - flat.mean(0, dtype=np.float64)
    ratio = divide(*(np.square(z, dtype=np.float64).sum((1, 2)) for z in (error, centred)))
    fvus.append([ratio.value, ratio.standard_error])
    found = measure_losses(language.describe(settings), model, jnp.asarray(held_out))
    losses.append(average(np.asarray(found, np.float64).tolist()))
    acts.append(flat)
    latents = np.asarray(f)
  return acts, latents, {'loss': losses, 'fvu': fvus}
