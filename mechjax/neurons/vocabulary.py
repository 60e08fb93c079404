"""Sums over the vocabulary for many pairs of a token and a neuron, without the logits of any pair.

The logits of a pair are a sum of a few vectors that tokens and neurons have on their own:

    l = plain * u_b + mlp * m_b + neuron * c_f + bias + along * v          each vector [V], each factor one number

so a block of B tokens and F neurons needs V x (B + F) numbers in memory, and B x F x V evaluations. They are made a few
rows of the vocabulary at a time. The vocabulary is the first axis of every array, and neurons are the last one, so that
a sum over the rows of a tile [rows, B, F] is made of additions of whole rows, which compile to vector instructions, and
a tile fits into a cache. The effects on a pair are several views of its logits, whose sums are one reduction. The
likeliest token has a logit of 0 before the ablation, and an ablation seldom changes
logits by much, so the exponentials need no maximum to be subtracted, and one pass over the vocabulary is enough.

Sharp edges: where a sum leaves the range of the dtype (logits over 80, or all of them below -46, in float32) the result
is not finite, and the caller has to ask for an `exact` evaluation. Sums are accumulated in the dtype of the vectors: in
float32 a loss has an error of about 1e-6 nats, which an effect inherits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ROWS = 8
"""Rows of the vocabulary in a tile. They are unrolled, and with 16 or more a CPU's compiler gives up vectors."""
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
  """Factors of the vectors in the logits of each pair, [B, F] each.

  Attributes:
    neuron: of the neuron's vector.
    plain: of the token's; None for 1.
    mlp, along: of the others; None where they have no part in the logits.
  """

  neuron: Float[Array, 'B F']
  plain: Float[Array, 'B F'] | None = None
  mlp: Float[Array, 'B F'] | None = None
  along: Float[Array, 'B F'] | None = None


class Sums(NamedTuple):
  """Results of the sums for each pair, [B, F] each.

  Attributes:
    log_total: logsumexp of the logits; not finite where a sum left the range that can be represented.
    target: logit of the next token.
    entropy: of the distribution, in nats; None except in the first view.
    changed: whether another token is the likeliest; None except in the first view.
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
  views: Mapping[str, Factors],
  next_B: Int[Array, ' B'],
  likely_B: Int[Array, ' B'],
  *,
  exact: bool,
) -> dict[str, Sums]:
  """Evaluates predictions of every pair, under several views of its logits, in one pass over the vocabulary.

  Args:
    vectors: the vectors.
    views: factors of the vectors for each pair, keyed by the names of the views. Entropy and changes of the likeliest
      token are those of the first view.
    next_B: id of the token that follows each token.
    likely_B: id of the likeliest token without an ablation, the reference of `changed`.
    exact: whether exponentials are relative to the largest logit, which takes another pass. Else they are those of the
      logits, which have to be small: `plain` and `mlp` are 0 at the likeliest token.
  """
  bases = _find_peaks(vectors, views) if exact else None
  first, spread, largest, *others = _sum_exponentials(vectors, views, bases)
  found: dict[str, Sums] = {}
  for i, (name, total) in enumerate(zip(views, (first, *others))):
    base = jnp.zeros_like(total) if bases is None else bases[i]
    total = jnp.where(total > _LEAST, total, jnp.nan)
    log_sum, target = jnp.log(total), _read_at(vectors, views[name], next_B)
    entropy = None if i else log_sum - spread / total
    changed = None if i else _exceeds(largest + base, _read_at(vectors, views[name], likely_B))
    found[name] = Sums(base + log_sum, target, entropy, changed)
  return found


def _exceeds(largest: Array, reference: Array) -> Array:
  """Whether logits are larger by more than the rounding of two ways to compute one logit."""
  eps = jnp.finfo(largest.dtype).eps
  return largest - reference > 16 * eps * (1 + jnp.abs(reference))


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
  plain = rows.plain if factors.plain is None else factors.plain * rows.plain
  l = plain + factors.neuron * rows.neuron
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
  V = len(vectors.plain)
  n = min(V, ROWS)
  whole, rest = divmod(V, n)

  def body(i: Array, carry: Carry) -> Carry:
    return step(_take_rows(vectors, i * n, n), carry)

  carry = jax.lax.fori_loop(0, whole, body, carry)
  return step(_take_rows(vectors, whole * n, rest), carry) if rest else carry


def _find_peaks(vectors: Vectors, views: Mapping[str, Factors]) -> tuple[Array, ...]:
  """The largest logit of each pair under each view."""

  def step(rows: _Rows, carry: tuple[Array, ...]) -> tuple[Array, ...]:
    tiles = [_read(rows, one, vectors.softcap) for one in views.values()]
    return tuple(jnp.maximum(peak, jnp.max(tile, axis=0)) for peak, tile in zip(carry, tiles))

  low = tuple(jnp.full_like(one.neuron, -jnp.inf) for one in views.values())
  return _fold_tiles(step, low, vectors)


def _sum_exponentials(
  vectors: Vectors, views: Mapping[str, Factors], bases: tuple[Array, ...] | None
) -> tuple[Array, ...]:
  """Sums over the vocabulary, with l the logits less their base.

  Returns:
    Sum of exp(l), sum of exp(l) l and the largest l of the first view, and the sum of exp(l) of each other view.
  """

  def step(rows: _Rows, carry: tuple[Array, ...]) -> tuple[Array, ...]:
    parts: list[Array] = []
    for i, factors in enumerate(views.values()):
      l = _read(rows, factors, vectors.softcap)
      l = l if bases is None else l - bases[i]
      exp = jnp.exp(l)
      parts += [exp] if i else [exp, exp * l, l]
    # One reduction of all quantities is one loop, in which each exponential is evaluated once.
    start = tuple(jnp.full((), x, exp.dtype) for x in _starts(len(parts)))
    return _join(carry, jax.lax.reduce(tuple(parts), start, _join, (0,)))

  like = next(iter(views.values())).neuron
  return _fold_tiles(step, tuple(jnp.full_like(like, x) for x in _starts(len(views) + 2)), vectors)


def _starts(n: int) -> list[float]:
  """Sums and the largest number of nothing; the latter is the third of `n` quantities."""
  return [-jnp.inf if i == 2 else 0.0 for i in range(n)]


def _join(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
  """Quantities of two parts of the vocabulary together."""
  return tuple(jnp.maximum(x, y) if i == 2 else x + y for i, (x, y) in enumerate(zip(a, b)))
