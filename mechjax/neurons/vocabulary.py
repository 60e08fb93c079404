"""Sums over the vocabulary for many pairs of a token and a neuron, without the logits of any pair.

The logits of a pair are a sum of a few vectors that tokens and neurons have on their own:

    l = plain * u_b + mlp * m_b + neuron * c_f + bias + along * v          each vector [V], each factor one number

so a block of B tokens and F neurons needs V x (B + F) numbers in memory, and B x F x V evaluations. They are made a few
rows of the vocabulary at a time. The vocabulary is the first axis of every array, and neurons are the last one, so that
a sum over the rows of a tile [rows, B, F] is made of additions of whole rows, which compile to vector instructions, and
a tile fits into a cache. The likeliest token has a logit of 0 before the ablation, and an ablation seldom changes
logits by much, so the exponentials need no maximum to be subtracted, and one pass over the vocabulary is enough.

Sharp edges: where a sum leaves the range of the dtype (logits over 80, or all of them below -46, in float32) the result
is not finite, and the caller has to ask for an `exact` evaluation. Sums are accumulated in the dtype of the vectors: in
float32 a loss has an error of about 1e-6 nats, which an effect inherits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

TILE = 2**15
"""Numbers of a tile: rows of the vocabulary, times tokens, times neurons."""
MIN_ROWS, MAX_ROWS = 8, 32
"""Bounds on the number of rows in a tile."""

_LEAST = 1e-20
"""Sums below this one are refused: their terms could be too small for float32."""

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
    log_total: logsumexp of the logits; not finite where a sum left the range that can be represented.
    target: logit of the next token.
    entropy: of the distribution, in nats; None if it was not requested.
    changed: whether another token is the likeliest; None if it was not requested.
  """

  log_total: Float[Array, 'B F']
  target: Float[Array, 'B F']
  entropy: Float[Array, 'B F'] | None
  changed: Bool[Array, 'B F'] | None

  @property
  def loss(self) -> Float[Array, 'B F']:
    """Negative log-probability of the next token, in nats."""
    return self.log_total - self.target


def sum_vocabulary(
  vectors: Vectors,
  factors: Factors,
  next_B: Int[Array, ' B'],
  likely_B: Int[Array, ' B'],
  *,
  details: bool,
  exact: bool,
) -> Sums:
  """Evaluates the prediction of every pair.

  Args:
    vectors: the vectors.
    factors: their factors for each pair.
    next_B: id of the token that follows each token.
    likely_B: id of the likeliest token without an ablation, the reference of `changed`.
    details: whether entropy and changes of the likeliest token are computed.
    exact: whether exponentials are relative to the largest logit, which takes another pass over the vocabulary. Else
      they are those of the logits, which have to be small: `plain` and `mlp` are 0 at the likeliest token.
  """
  base = _find_peaks(vectors, factors) if exact else None
  total, spread, largest = _sum_exponentials(vectors, factors, base, details)
  total = jnp.where(total > _LEAST, total, jnp.nan)
  log_sum, target, changed = jnp.log(total), _read_at(vectors, factors, next_B), None
  if largest is not None:
    likely = _read_at(vectors, factors, likely_B)
    gap = largest - likely if base is None else largest + base - likely
    # By more than the rounding of two ways to compute one logit.
    changed = gap > 16 * jnp.finfo(total.dtype).eps * (1 + jnp.abs(likely))
  return Sums(
    log_total=log_sum if base is None else base + log_sum,
    target=target,
    entropy=None if spread is None else log_sum - spread / total,
    changed=changed,
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


def _read_at(vectors: Vectors, factors: Factors, ids_B: Array) -> Array:
  """Logits of the pairs at one token of the vocabulary for each token of the block."""
  columns = jnp.arange(len(ids_B))
  own = lambda x: None if x is None else x[ids_B, columns][:, None]  # noqa: E731
  shared = lambda x: None if x is None else x[ids_B][:, None]  # noqa: E731
  rows = _Rows(
    plain=vectors.plain[ids_B, columns][:, None],
    mlp=own(vectors.mlp),
    neuron=vectors.neuron[ids_B],
    bias=shared(vectors.bias),
    frequency=shared(vectors.frequency),
  )
  return _read(rows, factors, vectors.softcap)


def _fold_tiles(step: Callable[[_Rows, Carry], Carry], carry: Carry, vectors: Vectors) -> Carry:
  """Applies a step to all tiles in order."""
  V, B = vectors.plain.shape
  n = min(V, max(MIN_ROWS, min(MAX_ROWS, TILE // (B * vectors.neuron.shape[1]))))
  whole, rest = divmod(V, n)

  def body(i: Array, carry: Carry) -> Carry:
    return step(_take_rows(vectors, i * n, n), carry)

  carry = jax.lax.fori_loop(0, whole, body, carry)
  return step(_take_rows(vectors, whole * n, rest), carry) if rest else carry


def _find_peaks(vectors: Vectors, factors: Factors) -> Array:
  """The largest logit of each pair."""

  def step(rows: _Rows, peak: Array) -> Array:
    return jnp.maximum(peak, jnp.max(_read(rows, factors, vectors.softcap), axis=0))

  return _fold_tiles(step, jnp.full(factors.plain.shape, -jnp.inf, vectors.plain.dtype), vectors)


def _sum_exponentials(
  vectors: Vectors, factors: Factors, base: Array | None, details: bool
) -> tuple[Array, Array | None, Array | None]:
  """Sums of exp(l) and of exp(l) l over the vocabulary, and the largest l, with l the logits less `base`."""
  dtype = vectors.plain.dtype
  zero, low = jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype)

  def step(rows: _Rows, carry: tuple) -> tuple:
    l = _read(rows, factors, vectors.softcap)
    l = l if base is None else l - base
    exp = jnp.exp(l)
    if not details:
      return (carry[0] + jnp.sum(exp, axis=0),)
    # One reduction of three quantities is one loop, in which the exponential is evaluated once.
    return _join(carry, jax.lax.reduce((exp, exp * l, l), (zero, zero, low), _join, (0,)))

  fill = lambda x: jnp.full(factors.plain.shape, x, dtype)  # noqa: E731
  carry = tuple(map(fill, (zero, zero, low))) if details else (fill(zero),)
  found = _fold_tiles(step, carry, vectors)
  return found if details else (*found, None, None)  # type: ignore[return-value]


def _join(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
  """Two sums and a maximum of two parts of the vocabulary."""
  return a[0] + b[0], a[1] + b[1], jnp.maximum(a[2], b[2])
