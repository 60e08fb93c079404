"""Entropy and loss of the predictions of many tokens, from their final streams, without keeping V numbers a token.

found = measure_predictions(readout, x, next_tokens)
found.entropy, found.loss                         [B], in nats
p = mean_prediction(readout, x)                   [V], the model's own unigram distribution
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from mechjax.logits import log_probs
from mechjax.neurons.checks import check_floats, check_ids
from mechjax.neurons.passes import iterate_blocks
from mechjax.neurons.readout import Readout


class Predictions(NamedTuple):
  """Entropy and loss of each prediction.

  Attributes:
    entropy: of the distribution, in nats, float64 [B].
    loss: negative log-probability of the next token, in nats, float64 [B].
  """

  entropy: Float64[np.ndarray, ' B']
  loss: Float64[np.ndarray, ' B']


def measure_predictions(
  readout: Readout,
  x: Float[Array | np.ndarray, 'B D'],
  next_tokens: Int[Array | np.ndarray, ' B'],
  batch: int = 64,
) -> Predictions:
  """Measures entropy and loss.

  Args:
    readout: the readout of the model.
    x: final residual streams.
    next_tokens: ids of the tokens that follow.
    batch: number of tokens whose logits exist at once.

  Raises:
    NeuronError: widths or lengths that do not fit, NaN, ids outside the vocabulary.
  """
  check_floats('x', x, 'B D', {'D': readout.width})
  ids_B = check_ids('next_tokens', next_tokens, readout.n_vocab, (len(x),))
  parts = [
    np.asarray(_measure(readout, jnp.asarray(x[rows]), jnp.asarray(ids_B[rows])), np.float64)[:, :n]
    for rows, n in iterate_blocks(len(x), batch)
  ]
  return Predictions(*np.concatenate(parts, axis=1))


def mean_prediction(
  readout: Readout, x: Float[Array | np.ndarray, 'B D'], batch: int = 64
) -> Float64[np.ndarray, ' V']:
  """Mean of the predicted distributions, float64 [V].

  Args, errors: as for `measure_predictions`.
  """
  check_floats('x', x, 'B D', {'D': readout.width})
  total = np.zeros(readout.n_vocab)
  for rows, n in iterate_blocks(len(x), batch):
    counted = jnp.asarray(np.arange(len(rows)) < n)
    total += np.asarray(_sum_predictions(readout, jnp.asarray(x[rows]), counted), np.float64)
  return total / total.sum()


@jax.jit
def _measure(readout: Readout, x_BxD: Array, ids_B: Array) -> Array:
  log_prob = log_probs(readout.logits(x_BxD))
  loss_B = -jnp.take_along_axis(log_prob, ids_B[:, None], axis=-1)[:, 0]
  return jnp.stack([-jnp.sum(jnp.exp(log_prob) * log_prob, axis=-1), loss_B])


@jax.jit
def _sum_predictions(readout: Readout, x_BxD: Array, counted_B: Array) -> Array:
  P_BxV = jnp.exp(log_probs(readout.logits(x_BxD)))
  return jnp.sum(jnp.where(counted_B[:, None], P_BxV, 0), axis=0)
