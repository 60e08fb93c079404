"""Log-probabilities, next-token losses and KL divergences of logits.

Models, the metrics of patching and the evaluation of dictionaries all use these functions, so that a loss is the same
number wherever it is computed. All results are in nats, in float32 or wider, and work under jit, grad and vmap.

Letters in shapes: V vocabulary; the axes before it are arbitrary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mechjax import precision


def log_probs(logits: jax.Array) -> jax.Array:
  """Log-probabilities of logits [..., V]."""
  return jax.nn.log_softmax(precision.wide(logits))


def next_token_loss(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
  """Negative log-probability of the token that follows each position.

  Args:
    log_probs: [..., V].
    targets: ids of the tokens that follow, int [...]; -1 where no token is predicted.

  Returns:
    Losses [...]; 0 where no token is predicted, NaN for an id outside the vocabulary.
  """
  ids = jnp.maximum(targets, 0)[..., None]
  chosen = jnp.take_along_axis(log_probs, ids, -1, mode='fill')[..., 0]
  return jnp.where(targets >= 0, -chosen, 0)


def kl_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
  """KL(p || q), [...], of log-probabilities [..., V]; tokens of probability 0 under p contribute 0."""
  return jnp.sum(jnp.where(p == -jnp.inf, 0, jnp.exp(p) * (p - q)), -1)
