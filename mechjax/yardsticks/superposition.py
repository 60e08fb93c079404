"""Dictionaries whose answer is known: matches with true directions, and toy models of superposition.

    mmcs(found, truth)                               mean over true directions of the largest cosine, [...]

The mean maximum cosine similarity is 1 if every true direction is a row of the dictionary (Sharkey et al. 2022). A toy
model of superposition makes true directions that a network has learned: W of ReLU(x W W^T + b), trained to reconstruct
n sparse features through D dimensions (Elhage et al. 2022, arXiv 2209.10652):

    toys = train_toys(jax.random.key(0), ToyModel(48, 32), density=[0.02, 0.05, 0.1], instances=4)
    toys.W, toys.loss                                [densities, instances, n, D], [densities, instances]
    measure_superposition(toys.W)                    features with a direction, and dimensions of each

All instances train side by side under vmap, and densities are data: a sweep compiles once.

Sharp edges: a row of zeros has cosine 0 with everything. MMCS does not notice directions of the dictionary that are not
true ones, or two rows for one direction: a dictionary of many random rows has a large MMCS in few dimensions, so
compare with random rows of the same number. A feature that the toy model gave up has a W of nearly zero length, and no
direction: leave it out (`min_length`).

Letters: B examples, D width, M latents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from mechjax import precision
from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import as_numbers, check_whole

Directions = Float[Array | np.ndarray, '*instances n D']
"""Directions as rows; leading axes are instances that are compared one by one."""

DictionaryRows = Float[Array | np.ndarray, '*instances M D']
"""Rows of a dictionary of each instance."""


@dataclasses.dataclass(frozen=True)
class ToyModel:
  """A toy model of superposition.

  Attributes:
    features: n, number of features, uniform in [0, 1] where active.
    width: D, number of dimensions.
    decay: importance of feature i is decay^i in the loss; 1 for equal importance.
    steps: training steps, of Adam with a cosine decay to 0.
    batch: examples of a step.
    rate: learning rate.

  Raises:
    YardstickError: numbers that are too small; the message contains the value.
  """

  features: int
  width: int
  decay: float = 1.0
  steps: int = 2000
  batch: int = 256
  rate: float = 1e-2

  def __post_init__(self) -> None:
    for name in ('features', 'width', 'steps', 'batch'):
      check_whole(name, getattr(self, name), 1)
    if not 0 < self.decay <= 1 or not 0 < self.rate < np.inf:
      raise YardstickError(
        f'decay={self.decay!r}, rate={self.rate!r}; expected above 0, and a decay of at most 1'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Toys:
  """Trained toy models.

  Attributes:
    density: probability that a feature is active.
    W: embeddings.
    b: biases.
    loss: weighted squared error of the last tenth of the steps, of an example.
  """

  density: Float[np.ndarray, ' densities']
  W: Float[Array, 'densities instances n D']
  b: Float[Array, 'densities instances n']
  loss: Float[Array, 'densities instances']


def mmcs(
  found: DictionaryRows, truth: Directions, min_length: float = 0.0
) -> Float[np.ndarray, '*instances']:
  """Mean over true directions of the largest cosine with a row.

  Args:
    found: rows of a dictionary [..., M, D].
    truth: true directions [..., n, D].
    min_length: true directions that are shorter are left out.

  Raises:
    YardstickError: NaN, other widths or leading axes; no true direction that is long enough.
  """
  rows, true = _as_rows('found', found), _as_rows('truth', truth)
  if rows.shape[-1] != true.shape[-1] or rows.shape[:-2] != true.shape[:-2]:
    raise YardstickError(f'directions of shapes {rows.shape} and {true.shape} cannot be compared')
  length = np.linalg.norm(true, axis=-1)
  counts = (length > 0) & (length >= min_length)
  if not counts.any(-1).all():
    raise YardstickError(
      f'an instance has no true direction of length {min_length:.3g}',
      cause='features that the toy model gave up',
      hint='a smaller min_length, or denser features',
    )
  best = (_normalise(true) @ _normalise(rows).swapaxes(-1, -2)).max(-1)
  return np.asarray(np.sum(best * counts, -1) / counts.sum(-1))


def measure_superposition(W: Directions, min_length: float = 0.5) -> dict[str, np.ndarray]:
  """Measures how many features share the dimensions of toy models.

  Args:
    W: embeddings [..., n, D].
    min_length: length of a feature that is represented.

  Returns:
    'represented': share of features of that length. 'dimensions': mean over them of the dimensionality
    |W_i|^2 / sum_j (unit W_i . W_j)^2, 1 for a feature with a dimension of its own; NaN without such features.

  Raises:
    YardstickError: NaN, or another number of axes.
  """
  rows = _as_rows('W', W)
  length = np.linalg.norm(rows, axis=-1)
  kept = length >= min_length
  squares = np.sum((_normalise(rows) @ rows.swapaxes(-1, -2)) ** 2, -1)
  each = length**2 / np.where(squares > 0, squares, 1)
  count = kept.sum(-1)
  mean = np.sum(each * kept, -1) / np.where(count > 0, count, 1)
  return {'represented': kept.mean(-1), 'dimensions': np.where(count > 0, mean, np.nan)}


def train_toys(
  key: PRNGKeyArray, model: ToyModel, density: Sequence[float], instances: int = 1
) -> Toys:
  """Trains toy models at several densities, with several seeds each, all at once.

  Args:
    key: a random key.
    model: the model.
    density: probabilities that a feature is active.
    instances: models of each density.

  Raises:
    YardstickError: no densities, or one that is not above 0 and at most 1; a key that is not one; a training that
      diverged.
  """
  if not isinstance(key, jax.Array | np.ndarray):
    raise YardstickError(f'key={key!r:.100} is not a random key', hint='jax.random.key(0)')
  p = as_numbers('density', density, 1)
  if not ((p > 0) & (p <= 1)).all():
    raise YardstickError(f'density={density!r:.100}; expected probabilities above 0, at most 1')
  check_whole('instances', instances, 1)
  keys = jax.random.split(key, (len(p), instances))
  W, b, loss = _train_all(model, keys, jnp.asarray(p, jnp.float32))
  if not np.isfinite(np.asarray(loss)).all():
    raise YardstickError(
      f'the loss of a toy model is not finite: {np.asarray(loss).tolist()!r:.150}'
    )
  return Toys(np.asarray(p, np.float32), W, b, loss)


def draw_features(
  key: PRNGKeyArray, density: Float[Array, ''] | float, shape: tuple[int, ...]
) -> Float[Array, ' ...']:
  """Features that are active with a probability, and then uniform in [0, 1]."""
  of_activity, of_size = jax.random.split(key)
  active = jax.random.bernoulli(of_activity, density, shape)
  return jnp.where(active, jax.random.uniform(of_size, shape), 0)


@functools.partial(jax.jit, static_argnums=0)
def _train_all(
  model: ToyModel, keys: jax.Array, density: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  one = functools.partial(_train, model)
  return jax.vmap(jax.vmap(one, in_axes=(0, None)))(keys, density)


def _train(
  model: ToyModel, key: jax.Array, density: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  n, D = model.features, model.width
  optimiser = optax.adam(optax.cosine_decay_schedule(model.rate, model.steps))
  importance = jnp.asarray(model.decay ** np.arange(n), jnp.float32)
  start, *keys = jax.random.split(key, 2)

  def loss_of(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = precision.matmul(x, params['W'])
    out = jax.nn.relu(precision.matmul(hidden, params['W'].T) + params['b'])
    return jnp.mean(jnp.sum(importance * jnp.square(x - out), -1))

  def step(carry, key):
    params, state = carry
    x = draw_features(key, density, (model.batch, n))
    loss, grads = jax.value_and_grad(loss_of)(params, x)
    updates, state = optimiser.update(grads, state)
    return (optax.apply_updates(params, updates), state), loss

  W = jax.random.normal(start, (n, D), jnp.float32) * float((1 / max(n, D)) ** 0.5)
  params = {'W': W, 'b': jnp.zeros(n, jnp.float32)}
  every = jax.random.split(keys[0], model.steps)
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an integer power
    (params, _), losses = jax.lax.scan(step, (params, optimiser.init(params)), every)
  return params['W'], params['b'], losses[-max(1, model.steps // 10) :].mean()


def _as_rows(name: str, x: Directions | DictionaryRows) -> np.ndarray:
  return as_numbers(name, x, max(2, np.ndim(x)))


def _normalise(rows: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(rows, axis=-1, keepdims=True)
  return rows / np.where(length > 0, length, 1)
