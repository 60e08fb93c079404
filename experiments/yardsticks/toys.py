"""Toy models of superposition, and whether dictionaries of their hidden activations find the true features.

For each density of the features, several toy models train side by side; then, for each number of latents, one ReLU
dictionary for each model and each sparsity coefficient trains on the hidden activations x = f W, scaled to E|x|^2 = 1.
The measure is MMCS, next to that of the initial rows of the same dictionary, which are random.

    results = measure_toys(settings)
    results['mmcs'][latents][density]         [mean, standard error] over models, for each sparsity coefficient
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.yardsticks.settings import Settings
from mechjax import precision, sae, yardsticks
from mechjax.sae.ops import unit_rows

BATCH, RATE, WARM_UP = 256, 1e-2, 0.2


def measure_toys(settings: Settings) -> dict[str, Any]:
  """Trains toy models and their dictionaries.

  Returns:
    'superposition': for each density, share of features with a direction and mean dimensionality, over models. 'mmcs',
    'l0', 'random': by number of latents and density, [mean, error] over models for each sparsity coefficient; 'random'
    is the MMCS of the initial rows.
  """
  model = yardsticks.ToyModel(
    settings.toy_features, settings.toy_width, steps=settings.toy_steps, batch=BATCH
  )
  of_toys, of_data = jax.random.split(jax.random.key(settings.seed))
  toys = yardsticks.train_toys(of_toys, model, settings.toy_density, settings.toy_instances)
  shape = yardsticks.measure_superposition(toys.W)
  found: dict[str, Any] = {
    'density': list(settings.toy_density),
    'sparsity': list(settings.toy_sparsity),
    'superposition': {k: [_give(row) for row in v] for k, v in shape.items()},
    'loss': [_give(row) for row in np.asarray(toys.loss)],
    'mmcs': {}, 'l0': {}, 'random': {},
  }  # fmt: skip
  sparsity = jnp.asarray(settings.toy_sparsity, jnp.float32)
  for n in settings.toy_latents:
    one = sae.ReLU(d_in=settings.toy_width, width=n, sparsity=settings.toy_sparsity[0])
    density = jnp.asarray(toys.density)
    rows, start, l0 = _train_all(one, settings.toy_steps, of_data, toys.W, density, sparsity)
    truth = np.broadcast_to(np.asarray(toys.W)[:, :, None], (*rows.shape[:3], *toys.W.shape[2:]))
    scores = {
      'mmcs': _compare(rows, truth), 'random': _compare(start, truth), 'l0': np.asarray(l0),
    }  # fmt: skip
    for name, values in scores.items():
      found[name][n] = [[_give(x) for x in of_density.T] for of_density in values]
  return found


def _compare(rows: Float[Array, ' ...'], truth: np.ndarray) -> np.ndarray:
  """MMCS over the features that a toy model represents; NaN if it represents none of them."""
  out = np.full(truth.shape[:3], np.nan)
  for at in np.ndindex(out.shape):
    if (np.linalg.norm(truth[at], axis=-1) >= 0.5).any():
      out[at] = yardsticks.mmcs(np.asarray(rows)[at], truth[at], min_length=0.5)
  return out


def _give(values: np.ndarray) -> list[float]:
  """Mean and standard error over models that have a value."""
  known = np.asarray(values, np.float64)
  known = known[np.isfinite(known)]
  if not len(known):
    return [float('nan'), float('nan')]
  error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else float('nan')
  return [float(known.mean()), float(error)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_all(
  one: sae.ReLU, steps: int, key: PRNGKeyArray, W: Array, density: Array, sparsity: Array
) -> tuple[Array, Array, Array]:
  """Decoder rows, initial rows and L0, [densities, models, coefficients, ...]."""
  train = functools.partial(_train, one, steps)
  train = jax.vmap(train, in_axes=(None, None, None, 0))
  train = jax.vmap(train, in_axes=(0, 0, None, None))
  keys = jax.random.split(key, W.shape[:2])
  return jax.vmap(train, in_axes=(0, 0, 0, None))(keys, W, density, sparsity)


def _train(
  one: sae.ReLU, steps: int, key: PRNGKeyArray, W: Array, density: Array, sparsity: Array
) -> tuple[Array, Array, Array]:
  of_scale, of_start, of_steps = jax.random.split(key, 3)
  draw = functools.partial(yardsticks.draw_features, density=density)
  x = precision.matmul(draw(of_scale, shape=(4096, len(W))), W)
  truth = W / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x), -1)))
  rate = optax.cosine_decay_schedule(RATE, steps)
  optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(rate, b1=0.0, b2=0.999))
  params = one.init(of_start)

  def step(carry, key_and_number):
    params, state = carry
    key, n = key_and_number
    x = precision.matmul(draw(key, shape=(BATCH, len(W))), truth)
    coefficient = sparsity * jnp.minimum(1, n / (WARM_UP * steps))
    gradient = jax.grad(one.loss, has_aux=True)
    grads, output = gradient(params, x, None, {'sparsity': coefficient})
    updates, state = optimiser.update(grads, state, params)
    params = unit_rows.normalise(optax.apply_updates(params, updates))
    return (params, state), sae.firings(output.latents).sum() / BATCH

  numbered = jax.random.split(of_steps, steps), jnp.arange(steps)
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an integer power
    (trained, _), l0 = jax.lax.scan(step, (params, optimiser.init(params)), numbered)
  return trained['W_dec'], params['W_dec'], l0[-max(1, steps // 10) :].mean()
