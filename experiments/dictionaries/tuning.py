"""A copy of a model that is fine-tuned on another text, and the losses of both.

    params, losses = tune(model, rows, steps=200, size=2, rate=5e-5)
    measure_losses(model, params, rows, is_kept)             summed loss and predicted tokens of each context, [n, 2]

All parameters are trained, with AdamW, a cosine decay, and the gradient clipped to length 1. Each step takes the next
contexts, so that every context is seen once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechjax import logits
from mechjax.errors import SAEError
from mechjax.models.language_model import LanguageModel


def tune(
  model: LanguageModel, rows: np.ndarray, *, steps: int, size: int, rate: float
) -> tuple[Any, list[float]]:
  """Fine-tunes a copy of a model.

  Args:
    model: the model, which stays as it is.
    rows: contexts, int32 [steps * size, T].
    steps: number of steps.
    size: contexts of a step.
    rate: learning rate at the beginning.

  Returns:
    The parameters, and the mean loss of the batch at each step, in nats per token.

  Raises:
    SAEError: a loss is not finite.
  """
  optimiser = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(rate, steps, 0.1), weight_decay=0.0),
  )

  def measure(params: Any, tokens: jax.Array) -> jax.Array:
    scores = logits.log_probs(model.apply(params, tokens)[:, :-1])
    return jnp.mean(logits.next_token_loss(scores, tokens[:, 1:]))

  @functools.partial(jax.jit, donate_argnums=1)  # Adam's moments are as large as two models
  def advance(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
    loss, grads = jax.value_and_grad(measure)(params, tokens)
    with jax.numpy_dtype_promotion('standard'):  # optax raises floats to integer powers
      updates, state = optimiser.update(grads, state, params)
      return optax.apply_updates(params, updates), state, loss

  params, losses = model.params, []
  state = optimiser.init(params)
  for step in range(steps):
    batch = jnp.asarray(rows[step * size : (step + 1) * size])
    params, state, loss = advance(params, state, batch)
    losses.append(float(loss))
    if not np.isfinite(losses[-1]):
      raise SAEError(f'the loss of step {step} is {losses[-1]}', hint='a smaller --model_rate')
  return params, losses


def measure_losses(
  model: LanguageModel, params: Any, rows: np.ndarray, is_kept: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Summed next-token loss and number of predicted tokens of each context, float64 [n, 2].

  A token is predicted if it and the one before count.
  """

  @jax.jit
  def run(params: Any, tokens: jax.Array, predicted: jax.Array) -> jax.Array:
    scores = logits.log_probs(model.apply(params, tokens)[:, :-1])
    losses = logits.next_token_loss(scores, tokens[:, 1:])
    return jnp.stack([jnp.sum(jnp.where(predicted, losses, 0)), jnp.sum(predicted).astype(losses.dtype)])  # fmt: skip

  found = []
  for row in rows:
    kept = is_kept(row[None])
    found.append(run(params, jnp.asarray(row[None]), jnp.asarray(kept[:, 1:] & kept[:, :-1])))
  return np.array(found, np.float64)
