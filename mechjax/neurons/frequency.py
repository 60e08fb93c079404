"""Distributions of single tokens, and the direction of token frequency in logits.

Without a hint from the text, the best prediction of a model is the unigram distribution p. A token-frequency neuron
moves the prediction P towards it or away from it (Stolfo et al. 2024, arXiv 2406.16254, section 4). In logits this is
one direction:

    v = (log p - mean log p) / |log p - mean log p|          [V]
    KL(p || P) = -H(p) - p . logits + logsumexp(logits)

Either of two distributions can be meant, and results should state which:

    p = smooth(counts(batches, V))           of a text, with one added to each count
    p = mean_prediction(readout, x)          of the model: the mean of its predictions (`predictions`)

Sharp edge: counts of a text that is not the training text have other rare tokens than the model has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int64

from mechjax.errors import NeuronError
from mechjax.logits import log_probs
from mechjax.neurons.checks import check_floats, check_ids
from mechjax.neurons.readout import Readout

_SUM = 1e-4
"""Largest difference of the sum of a distribution from 1."""


class Frequency(NamedTuple):
  """A distribution of tokens p and its direction v, ready for products with streams.

  Attributes:
    direction: v, [V].
    pulled: A v, [D].
    bias: product of v with the bias of the logits, a scalar.
    p_pulled: A p, [D].
    p_bias: product of p with the bias of the logits, a scalar.
  """

  direction: Array
  pulled: Array
  bias: Array
  p_pulled: Array
  p_bias: Array

  @classmethod
  def of(cls, readout: Readout, unigram: Float[Array | np.ndarray, ' V']) -> Frequency:
    """Prepares a distribution for a readout.

    Raises:
      NeuronError: as `check_unigram`; logits with a cap, whose part along v is not linear in the stream.
    """
    v, p = find_direction(unigram, readout.n_vocab), check_unigram(unigram, readout.n_vocab)
    if readout.softcap is not None:
      raise NeuronError(
        f'frequency effects of logits with a cap of {readout.softcap:g}',
        cause='the component of capped logits along the direction of frequency is not linear in the stream',
        hint='leave unigram= out, or give the readout no softcap, for the effects on the logits before the cap',
      )
    bias = np.zeros(len(v)) if readout.bias is None else np.asarray(readout.bias, np.float64)
    parts = v, readout.pull(v), v @ bias, readout.pull(p), p @ bias
    return cls(*(jnp.asarray(x, readout.rows.dtype) for x in parts))


def counts(batches: Iterable[Int[Array | np.ndarray, ' ...']], n_vocab: int) -> Int64[np.ndarray, ' V']:  # fmt: skip
  """Counts of each token in a text.

  Args:
    batches: arrays of token ids of any shape, without padding.
    n_vocab: V.

  Returns:
    int64 [V].

  Raises:
    NeuronError: no tokens, or ids outside the vocabulary.
  """
  found = np.zeros(n_vocab, np.int64)
  for batch in batches:
    found += np.bincount(check_ids('a batch of tokens', batch, n_vocab).ravel(), minlength=n_vocab)
  if not found.any():
    raise NeuronError('no tokens to count', cause='an iterator that was used before')
  return found


def smooth(counts_V: Int[np.ndarray, ' V']) -> Float64[np.ndarray, ' V']:
  """The distribution of tokens with one added to each count, float64 [V].

  Raises:
    NeuronError: negative counts, or not integers.
  """
  whole = np.asarray(counts_V)
  if whole.ndim != 1 or not np.issubdtype(whole.dtype, np.integer) or (whole < 0).any():
    raise NeuronError(
      f'counts of shape {list(whole.shape)} and dtype {whole.dtype}; expected int [V]'
    )
  raised = whole.astype(np.float64) + 1
  return raised / raised.sum()


def check_unigram(unigram: Float[Array | np.ndarray, ' V'], n_vocab: int) -> Float64[np.ndarray, ' V']:  # fmt: skip
  """Returns a distribution of tokens in float64, with a sum of exactly 1.

  Raises:
    NeuronError: another length than V, NaN, a probability of zero or less, a sum that is not 1.
  """
  p = np.asarray(check_floats('unigram', unigram, 'V', {'V': n_vocab}), np.float64)
  if p.min() <= 0:
    raise NeuronError(
      f'unigram has the probability {p.min():g} for token {int(p.argmin())}, which has no logarithm',
      hint='smooth(counts) adds one to each count',
    )
  if abs(p.sum() - 1) > _SUM:
    raise NeuronError(
      f'unigram sums to {p.sum():.6g}, not to 1', hint='smooth(counts) makes it of counts'
    )
  return p / p.sum()


def find_direction(unigram: Float[Array | np.ndarray, ' V'], n_vocab: int) -> Float64[np.ndarray, ' V']:  # fmt: skip
  """The direction v of token frequency in logits: centred log-probabilities at length 1, float64 [V].

  Raises:
    NeuronError: as `check_unigram`; or all tokens are equally frequent.
  """
  log_p = np.log(check_unigram(unigram, n_vocab))
  log_p -= log_p.mean()
  length = np.linalg.norm(log_p)
  if length < 1e-9:
    raise NeuronError('unigram is uniform, and gives no direction')
  return log_p / length


def measure_kl(
  unigram: Float[Array | np.ndarray, ' V'], logits: Float[Array | np.ndarray, '*batch V']
) -> Float[Array, '*batch']:
  """KL(p || P), in nats, [...]: from the distribution of tokens p to the prediction P of logits [..., V].

  Args:
    unigram: p; its values are checked if they are not traced.
    logits: logits of P.

  Raises:
    NeuronError: as `check_unigram`; a distribution over another number of tokens than the logits.
  """
  V = np.shape(logits)[-1] if np.ndim(logits) else 0
  if np.shape(unigram) != (V,):
    raise NeuronError(
      f'unigram has shape {list(np.shape(unigram))}, and the logits have {list(np.shape(logits))}',
      hint='[V] and [..., V]',
    )
  if not isinstance(unigram, jax.core.Tracer):
    check_unigram(unigram, V)
  return _measure_kl(jnp.asarray(unigram), jnp.asarray(logits))


@jax.jit
def _measure_kl(unigram: Array, logits: Array) -> Array:
  log_prob = log_probs(logits)
  p = unigram.astype(log_prob.dtype)
  return jnp.sum(p * (jnp.log(p) - log_prob), axis=-1)
