"""Sums over the vocabulary for many pairs of a token and a neuron, without the logits of any pair.

The logits of a pair are a sum of a few vectors that tokens and neurons have on their own:

    l = plain * u_b + mlp * m_b + neuron * c_f + bias + along * v          each vector [V], each factor one number

so a block of B tokens and F neurons needs V x (B + F) numbers in memory, and B x F x V evaluations. They are made a few
rows of the vocabulary at a time: first the largest logit, then the sum of exponentials, relative to it. The vocabulary
is the first axis of every array, and neurons are the last one, so that each operation is elementwise over a tile
[rows, B, F] that fits into a cache, and compiles to vector instructions.

Sharp edge: sums are accumulated in the dtype of the vectors. In float32 a loss has an error of about 1e-6 nats, which
an effect inherits.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TILE = 2**17
"""Numbers of a tile: rows of the vocabulary, times tokens, times neurons."""
MAX_ROWS = 8
"""Maximum number of rows in a tile, whose sums are unrolled."""

Carry = TypeVar('Carry')


class Vectors(NamedTuple):
  """Vectors over the vocabulary of B tokens and F neurons.

  Attributes:
    plain: u, the logits of each token before the bias, [V, B].
    mlp: m, what the output of the MLP adds to them, [V, B]; None where the MLP's norm does not exist.
    neuron: c, the logits of each neuron's direction, [V, F].
    bias: bias of the logits, [V]; None without one.
    frequency: v, direction of the token frequencies, [V]; None if it is not used.
    softcap: cap of the logits, a scalar; None without one.
  """

  plain: Float[Array, 'V B']
  mlp: Float[Array, 'V B'] | None
  neuron: Float[Array, 'V F']
  bias: Float[Array, ' V'] | None
  frequency: Float[Array, ' V'] | None
  softcap: Float[Array, ''] | None


class Factors(NamedTuple):
  """Factors of the vectors in the logits of each pair, [B, F] each; None where a vector has no part in them."""

  plain: Float[Array, 'B F']
  neuron: Float[Array, 'B F']
  mlp: Float[Array, 'B F'] | None = None
  along: Float[Array, 'B F'] | None = None


class Sums(NamedTuple):
  """Results of the sums for each pair, [B, F] each.

  Attributes:
    log_total: logsumexp of the logits.
    target: logit of the next token.
    entropy: of the distribution, in nats; None if it was not requested.
    argmax: the likeliest token, int32; None if it was not requested.
  """

  log_total: Float[Array, 'B F']
  target: Float[Array, 'B F']
  entropy: Float[Array, 'B F'] | None
  argmax: Int[Array, 'B F'] | None

  @property
  def loss(self) -> Float[Array, 'B F']:
    """Negative log-probability of the next token, in nats."""
    return self.log_total - self.target


def sum_vocabulary(
  vectors: Vectors, factors: Factors, next_B: Int[Array, ' B'], *, details: bool
) -> Sums:
  """Evaluates the prediction of every pair.

  Args:
    vectors: the vectors.
    factors: their factors for each pair.
    next_B: id of the token that follows each token.
    details: whether entropy and argmax are computed.
  """
  peak, argmax = _find_peaks(vectors, factors, details)
  total, spread = _sum_exponentials(vectors, factors, peak, details)
  log_sum = jnp.log(total)
  return Sums(
    log_total=peak + log_sum,
    target=_read(_take_tokens(vectors, next_B), factors, vectors.softcap),
    entropy=None if spread is None else log_sum - spread / total,
    argmax=argmax,
  )


# --- tiles ------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
  """Vectors at some tokens of the vocabulary, with axes that broadcast to [rows, B, F], or to [B, F]."""

  plain: Array
  mlp: Array | None
  neuron: Array
  bias: Array | None
  frequency: Array | None


def _read(rows: _Rows, factors: Factors, softcap: Array | None) -> Array:
  """Logits of the pairs at some tokens."""
  l = factors.plain * rows.plain + factors.neuron * rows.neuron
  if rows.mlp is not None and factors.mlp is not None:
    l += factors.mlp * rows.mlp
  if rows.bias is not None:
    l += rows.bias
  if softcap is not None:
    l = softcap * jnp.tanh(l / softcap)
  if rows.frequency is not None and factors.along is not None:
    l += factors.along * rows.frequency
  return l


def _take_rows(vectors: Vectors, start: Array | int, n: int) -> _Rows:
  """`n` rows from `start` on."""

  def take(x: Array | None, axes: tuple[int, ...]) -> Array | None:
    if x is None:
      return None
    return jnp.expand_dims(jax.lax.dynamic_slice_in_dim(x, start, n), axes)

  return _Rows(
    plain=take(vectors.plain, (2,)),  # type: ignore[arg-type]
    mlp=take(vectors.mlp, (2,)),
    neuron=take(vectors.neuron, (1,)),  # type: ignore[arg-type]
    bias=take(vectors.bias, (1, 2)),
    frequency=take(vectors.frequency, (1, 2)),
  )


def _take_tokens(vectors: Vectors, ids_B: Array) -> _Rows:
  """One row for each token of the block."""
  columns = jnp.arange(len(ids_B))
  at = lambda x: None if x is None else x[ids_B, columns][:, None]  # noqa: E731
  of = lambda x: None if x is None else x[ids_B][:, None]  # noqa: E731
  return _Rows(
    plain=vectors.plain[ids_B, columns][:, None],
    mlp=at(vectors.mlp),
    neuron=vectors.neuron[ids_B],
    bias=of(vectors.bias),
    frequency=of(vectors.frequency),
  )


def _fold_tiles(
  step: Callable[[_Rows, Array | int, Carry], Carry], carry: Carry, vectors: Vectors
) -> Carry:
  """Applies a step to all tiles in order."""
  V, B = vectors.plain.shape
  n = max(1, min(MAX_ROWS, V, TILE // (B * vectors.neuron.shape[1])))
  whole, rest = divmod(V, n)

  def body(i: Array, carry: Carry) -> Carry:
    return step(_take_rows(vectors, i * n, n), i * n, carry)

  carry = jax.lax.fori_loop(0, whole, body, carry)
  return step(_take_rows(vectors, whole * n, rest), whole * n, carry) if rest else carry


def _find_peaks(vectors: Vectors, factors: Factors, details: bool) -> tuple[Array, Array | None]:
  """The largest logit of each pair, and its token."""
  shape, dtype = factors.plain.shape, vectors.plain.dtype

  def step(rows: _Rows, start: Array | int, carry: tuple) -> tuple:
    peak, argmax = carry
    tile = _read(rows, factors, vectors.softcap)
    for j, l in enumerate(tile):
      if argmax is not None:
        argmax = jnp.where(l > peak, jnp.asarray(start + j, jnp.int32), argmax)
      peak = jnp.maximum(peak, l)
    return peak, argmax

  tokens = jnp.zeros(shape, jnp.int32) if details else None
  return _fold_tiles(step, (jnp.full(shape, -jnp.inf, dtype), tokens), vectors)


def _sum_exponentials(
  vectors: Vectors, factors: Factors, peak: Array, details: bool
) -> tuple[Array, Array | None]:
  """Sums of exp(l - peak), and of exp(l - peak) (l - peak), over the vocabulary."""

  def step(rows: _Rows, start: Array | int, carry: tuple) -> tuple:
    total, spread = carry
    below = _read(rows, factors, vectors.softcap) - peak
    # In memory once: both sums need it, and exponentials are what this costs.
    exp = jax.lax.optimization_barrier(jnp.exp(below))
    total += _add(exp)
    return total, None if spread is None else spread + _add(exp * below)

  zeros = jnp.zeros(factors.plain.shape, vectors.plain.dtype)
  return _fold_tiles(step, (zeros, zeros if details else None), vectors)


def _add(tile: Array) -> Array:
  """Sum over the rows of a tile, as additions of whole rows: a reduction would not be vectorised on a CPU."""
  return functools.reduce(operator.add, [*tile])
