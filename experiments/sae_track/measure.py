"""Drift and formation of the latents on held-out contexts, and the quality of every dictionary.

A latent of the last checkpoint has its most active tokens. Those of some latents are nearly all one byte, and such
tokens are similar before any training; those of others are different bytes in similar contexts. Formation is therefore
also reported for each group: `one byte`, where the most frequent byte has at least 0.9 of the tokens, and `several`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sae_track import dictionaries, language
from experiments.sae_track.settings import Settings
from mechjax.sae.analysis import Drift, Formation, find_top_tokens, measure_drift, measure_formation

PURE = 0.9


def measure(
  settings: Settings, models: Any, trained: dict[str, np.ndarray], held_out: np.ndarray
) -> tuple[Drift, Formation, dict[str, Any]]:
  """Drift, formation, and plain results by checkpoint.

  Args:
    settings: the settings.
    models: parameters of the model, with a leading axis of checkpoints.
    trained: results of `train_dictionaries`.
    held_out: held-out contexts.
  """
  sae, read = dictionaries.describe_dictionary(settings), language.make_reader(settings)
  loss = jax.jit(language.measure_loss, static_argnums=0)
  acts, losses, fvus, latents = [], [], [], np.zeros((0, 0))
  for t, scale in enumerate(trained['scale']):
    model = jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), models)
    own = {key: jnp.asarray(value[t]) for key, value in trained.items() if key != 'scale'}
    x = read(model, held_out).reshape(-1, settings.width) / np.float32(scale)
    f = sae.encode(own, jnp.asarray(x))
    latents, error = np.asarray(f), x - np.asarray(sae.decode(own, f))
    fvus.append(float(np.square(error).sum() / np.square(x - x.mean(0)).sum()))
    losses.append(float(loss(language.describe(settings), model, jnp.asarray(held_out))))
    acts.append(x)
  drift = measure_drift([*trained['W_dec']])
  top = find_top_tokens(latents, settings.top)
  drawn = np.random.default_rng(settings.seed).choice(len(latents), min(500, len(latents)), False)
  formation = measure_formation(acts, top, drawn)
  ids = held_out[:, 1:].reshape(-1)[top.tokens]
  purity = np.array([np.bincount(row).max() / len(row) for row in ids])
  groups = {'one byte': purity >= PURE, 'several': purity < PURE}
  return drift, formation, {
    'steps': settings.saved_steps,
    'loss': losses,
    'fvu': fvus,
    'drift': np.median(drift.to_last, 1).tolist(),
    'random': formation.random.tolist(),
    'random_error': formation.random_error.tolist(),
    'latents': {name: int(mask.sum()) for name, mask in groups.items()},
    'progress': {
      name: np.median(formation.progress[:, mask], 1).tolist()
      for name, mask in groups.items()
      if mask.any()
    },
  }  # fmt: skip
