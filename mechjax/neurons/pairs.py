"""Changes of predictions for a block of tokens and neurons, compiled once for blocks of one size.

`prepare` evaluates what all neurons have in common on some tokens, and `measure` the effects of some neurons on them:
the factors of `views`, the sums of `vocabulary`, and their differences from the prediction without an ablation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mechjax import precision
from mechjax.neurons import views
from mechjax.neurons.frequency import Frequency
from mechjax.neurons.readout import Readout
from mechjax.neurons.views import TokenTerms
from mechjax.neurons.vocabulary import Factors, Vectors, sum_vocabulary
from mechjax.neurons.writes import NeuronWrites


class PlainPrediction(NamedTuple):
  """Predictions without an ablation, [B, 1] each.

  Attributes:
    log_total: logsumexp of the shifted logits.
    loss: negative log-probability of the next token, in nats.
    entropy: in nats.
    mass: product of the shifted logits with the distribution of tokens; zeros without one.
  """

  log_total: Float[Array, 'B 1']
  loss: Float[Array, 'B 1']
  entropy: Float[Array, 'B 1']
  mass: Float[Array, 'B 1']


@jax.jit
def prepare(
  readout: Readout,
  writes: NeuronWrites,
  frequency: Frequency | None,
  x: Float[Array, 'B D'],
  a: Float[Array, 'B F'],
  next_tokens: Int[Array, ' B'],
) -> tuple[TokenTerms, PlainPrediction]:
  """Evaluates the terms of tokens and their predictions; `writes` and `a` are of all neurons."""
  tokens = views.prepare_tokens(readout, writes, x, a, next_tokens)
  nothing = dataclasses.replace(writes, W_out=jnp.zeros_like(writes.W_out[:1]))
  factors = views.find_plain(tokens)
  vectors = _make_vectors(readout, nothing, tokens, None)
  # By the same sums as for an ablation, so that both round alike.
  views_ = {'plain': factors}
  sums = sum_vocabulary(vectors, views_, next_tokens, tokens.likely, exact=False)['plain']
  mass = _multiply(factors, readout, nothing, tokens, frequency)
  return tokens, PlainPrediction(sums.log_total, sums.loss, sums.entropy, mass)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames='exact')
def measure(
  readout: Readout,
  writes: NeuronWrites,
  frequency: Frequency | None,
  tokens: TokenTerms,
  plain: PlainPrediction,
  d_BxF: Float[Array, 'B F'],
  *,
  exact: bool,
) -> dict[str, Float[Array, 'B F']]:
  """Evaluates the changes of each pair.

  Args:
    readout, frequency: the readout, and the distribution of tokens if effects through frequency are measured.
    writes: the neurons of the block.
    tokens, plain: from `prepare`.
    d_BxF: changes of the activations.
    exact: as in `sum_vocabulary`; without it, changes may be infinite or NaN.
  """
  vectors = _make_vectors(readout, writes, tokens, frequency)
  factors = views.find_factors(readout, writes, tokens, d_BxF)
  if frequency is not None:
    frozen = views.freeze_frequency(factors['total'], readout, writes, tokens, frequency)
    factors = {**factors, 'frequency_frozen': frozen}
  sums = sum_vocabulary(vectors, factors, tokens.next, tokens.likely, exact=exact)
  change = {name: one.loss - plain.loss for name, one in sums.items()}
  # An effect that was left out equals the one before it.
  change.setdefault('direct', change.get('mlp_frozen', change['total']))
  total = sums['total']
  entropy_change = jnp.asarray(total.entropy) - plain.entropy
  out = {name: jnp.abs(x) for name, x in change.items()} | {
    'loss': change['total'],
    'entropy': jnp.abs(entropy_change),
    'entropy_change': entropy_change,
    'changed': jnp.asarray(total.changed).astype(d_BxF.dtype),
  }
  out['mediated'] = out['total'] - out['direct']
  if frequency is not None:
    out['frequency_mediated'] = out['total'] - out['frequency_frozen']
    mass = _multiply(factors['total'], readout, writes, tokens, frequency)
    out['kl_change'] = total.log_total - plain.log_total - (mass - plain.mass)
    out['kl'] = jnp.abs(out['kl_change'])
  # Where nothing is changed, only rounding could differ.
  return {name: jnp.where(d_BxF == 0, 0, x) for name, x in out.items()}


def _make_vectors(
  readout: Readout, writes: NeuronWrites, tokens: TokenTerms, frequency: Frequency | None
) -> Vectors:
  """Vectors over the vocabulary of the tokens and neurons of a block."""
  dtype = readout.rows.dtype
  w_FxD = readout.centre(writes.directions.astype(dtype))
  return Vectors(
    plain=tokens.logits,
    mlp=None if tokens.mlp is None else tokens.mlp.logits,
    neuron=precision.einsum('vd,fd->vf', readout.rows, w_FxD),
    bias=readout.bias,
    frequency=None if frequency is None else frequency.direction,
    softcap=None if readout.softcap is None else jnp.asarray(readout.softcap, dtype),
  )


def _multiply(
  factors: Factors,
  readout: Readout,
  writes: NeuronWrites,
  tokens: TokenTerms,
  frequency: Frequency | None,
) -> Array:
  """Product of the shifted logits with the distribution of tokens; zeros without one."""
  if frequency is None:
    return jnp.zeros_like(factors.neuron)
  found = views.project(factors, readout, writes, tokens, frequency.p_pulled, frequency.p_bias)
  return found - views.find_shift(factors, tokens)
