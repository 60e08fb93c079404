"""Mutual feature regularisation: dictionaries of an ensemble are rewarded for features that they share.

Dictionaries that are trained alike from other seeds learn partly other features. Those that are in the data are more
likely to be found by several, so a penalty on disagreement prefers them (Marks et al. 2024, "Enhancing Neural Network
Interpretability with Feature-Aligned Sparse Autoencoders", arXiv 2411.01220):

    L = sum over members of their losses  +  alpha (1 - mean over pairs of MMCS)
    MMCS(A, B) = (mean_i max_j cos(a_i, b_j) + mean_j max_i cos(a_i, b_j)) / 2            rows of two decoders

    Ensemble(sae=TopK(...), reads='resid_post.5', seeds=(0, 1, 2), agreement=MFR(alpha=3.0))

The gradient of a pair with respect to one member treats the other as a constant, and both are moved in the same step.
alpha rises linearly from 0 over `ramp_steps`. A pair costs M x M x D products, so the penalty acts in every `every`-th
step only, in which it has its full weight; the maxima are found in blocks, and no array [M, M] is made.

Sharp edges: the penalty is the metric 'mfr' and not part of 'loss'; it is 0 in the steps in between, so report at
multiples of `every`. Members with equal seeds start equal and agree from the beginning.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.ops.unit_rows import unit_rows

_ROWS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class MFR:
  """Penalty on members of an ensemble that learn other features than their peers.

  Attributes:
    alpha: weight of the penalty.
    every: number of steps from one penalty to the next.
    ramp_steps: number of steps in which the weight rises from 0; 0 for the full weight at once.

  Raises:
    SAEError: a value is out of range; the message contains it.
  """

  alpha: float = 3.0
  every: int = 10
  ramp_steps: int = 100

  def __post_init__(self) -> None:
    check_number(self, 'alpha')
    check_whole(self, 'every', 'ramp_steps')
    check_field(self, 'alpha', self.alpha >= 0, 'at least 0')
    check_field(self, 'every', self.every >= 1, 'at least 1')
    check_field(self, 'ramp_steps', self.ramp_steps >= 0, 'at least 0')

  def weight(self, step: jax.typing.ArrayLike) -> jax.Array:
    """Weight of the penalty in step number `step`, counted from 0; float32."""
    done = jnp.asarray(step) + 1
    risen = jnp.clip(done / self.ramp_steps, 0, 1) if self.ramp_steps else jnp.ones(())
    return jnp.where(done % self.every == 0, self.alpha * risen, 0).astype(jnp.float32)

  def gradient(self, W_dec: jax.Array, step: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The weighted penalty, a scalar, and its gradient, [N, M, E].

    Args:
      W_dec: decoders of the members, [N, M, E].
      step: number of steps before this one.
    """
    weight = self.weight(step)

    def penalty(W: jax.Array) -> jax.Array:
      return weight.astype(W.dtype) * (1 - mean_similarity(W))

    zeros = jnp.zeros((), W_dec.dtype), jnp.zeros_like(W_dec)
    return lax.cond(weight > 0, jax.value_and_grad(penalty), lambda _: zeros, W_dec)


def mean_similarity(decoders: jax.Array | list[jax.Array] | tuple[jax.Array, ...]) -> jax.Array:
  """Mean over pairs of the MMCS of decoders; differentiable.

  Args:
    decoders: W_dec [M, E] of two or more dictionaries.

  Raises:
    SAEError: there are fewer than two, or their shapes differ.
  """
  shapes = [jnp.shape(W) for W in decoders]
  if len(shapes) < 2 or len({*shapes}) > 1 or len(shapes[0]) != 2:
    raise SAEError(
      f'decoders of shapes {shapes} to compare',
      cause='mutual feature regularisation needs two or more dictionaries of one shape',
      hint='members of one ensemble, with the same width',
    )
  pairs = itertools.combinations([unit_rows(W) for W in decoders], 2)
  return jnp.mean(jnp.stack([_pair_similarity(A, B) for A, B in pairs]))


def _pair_similarity(A_MxE: jax.Array, B_MxE: jax.Array) -> jax.Array:
  """MMCS of two decoders with unit rows, in both directions."""
  of_A, of_B = _nearest(lax.stop_gradient(A_MxE), lax.stop_gradient(B_MxE))
  ahead = jnp.mean(jnp.sum(A_MxE * B_MxE[of_A], -1))
  back = jnp.mean(jnp.sum(A_MxE[of_B] * B_MxE, -1))
  return (ahead + back) / 2


def _nearest(A_MxE: jax.Array, B_MxE: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Index of the nearest row of B for each row of A, and of A for each row of B, int [M] each."""
  n, width = len(A_MxE), A_MxE.shape[1]
  count = -(-n // _ROWS)
  each = -(-n // count)
  padded = jnp.pad(A_MxE, ((0, count * each - n), (0, 0)))
  row = jnp.arange(count * each, dtype=jnp.int32).reshape(count, each)

  def compare(best: tuple, block: tuple) -> tuple[tuple, jax.Array]:
    value, index = best
    rows, numbers = block
    cosine = jnp.where((numbers < n)[:, None], precision.matmul(rows, B_MxE.T), -jnp.inf)
    highest = jnp.max(cosine, 0)
    found = numbers[jnp.argmax(cosine, 0)]
    index = jnp.where(highest > value, found, index)
    return (jnp.maximum(highest, value), index), jnp.argmax(cosine, 1)

  start = jnp.full(len(B_MxE), -jnp.inf, A_MxE.dtype), jnp.zeros(len(B_MxE), jnp.int32)
  (_, of_B), of_A = lax.scan(compare, start, (padded.reshape(count, each, width), row))
  return of_A.reshape(-1)[:n], of_B
