"""Why a head attends: its score as a sum over pairs of nodes, one that makes the query and one that makes the key.

With frozen norms the query and the key are affine in the residual stream, so the score of a query position t and a key
position s is bilinear in what was written before (Kamath et al. 2025; docs/methods.md, section 10):

    score = scale * q · k + offset          q = sum over nodes of their part of q, likewise k
    pair[a, b] = scale * (part of q by node a) · (part of k by node b)

The parts are rows of attributions: one row for each of the H coordinates of q, one for each of k. Pairs are products of
their columns, so the table of all pairs is never made; `top` finds the largest ones.

    why = qk_attribution(model.apply, model.params, frozen, layer=5, head=1, query=-1, key=3)
    why.score, why.total()            equal, up to rounding
    why.by_query(), why.by_key()      the score by what makes the query, by what makes the key
    why.top(20)                       the pairs that matter most

The maps from the norm to q and k are identified as all maps of this room, at the unit vectors, with rotary embeddings
at their positions. A norm of q or k (QK-norm) hides its scale: it is evaluated at tiny inputs, where the constant in
its root makes it linear, and its scale is that of the run. Everything is checked against the run, and refused
otherwise.

Sharp edges: with a soft-cap on scores, pairs sum to the score before the cap. Positions count in the frozen run, which
has no padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PyTree

from mechjax import harvest, precision
from mechjax.circuits.checks import SAME, check_whole
from mechjax.circuits.frozen import Frozen, keep, read_sites
from mechjax.circuits.norms import deviation, tolerance_of
from mechjax.circuits.rows import Rows, attribute_rows
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError
from mechjax.harvest import Subgraph

TINY = 1e-9
"""Size of inputs at which the constant in the root of a QK-norm outweighs their squares."""


@dataclasses.dataclass(frozen=True, eq=False)
class QKAttribution:
  """A score as a sum over pairs of nodes.

  Attributes:
    query, key: parts of q and of k by node, [H, columns] in the order of `Rows.table`.
    scale: factor of their products.
    offset: part of the score that does not depend on q, such as a bias by distance.
    score: the score, before a soft-cap.
    capped: what the softmax sees; equal to `score` without a soft-cap.
  """

  query: Float[np.ndarray, 'H columns']
  key: Float[np.ndarray, 'H columns']
  scale: float
  offset: float
  score: float
  capped: float

  def total(self) -> float:
    """Sum over all pairs, and the offset."""
    q, k = (np.asarray(x, np.float64).sum(1) for x in (self.query, self.key))
    return self.scale * float(q @ k) + self.offset

  def by_query(self) -> Float64[np.ndarray, ' columns']:
    """The score by what makes the query: sums of pairs over keys."""
    return self.scale * (np.asarray(self.query, np.float64).T @ self.key.sum(1))

  def by_key(self) -> Float64[np.ndarray, ' columns']:
    """The score by what makes the key: sums of pairs over queries."""
    return self.scale * (np.asarray(self.key, np.float64).T @ self.query.sum(1))

  def top(self, count: int = 20, block: int = 1024) -> list[tuple[int, int, float]]:
    """The pairs (query column, key column, part of the score) of the largest absolute values.

    Args:
      count: number of pairs.
      block: number of query columns whose pairs exist at once.
    """
    best: list[tuple[int, int, float]] = []
    for start in range(0, self.query.shape[1], block):
      pairs = self.scale * (self.query[:, start : start + block].T @ self.key)
      flat = np.abs(pairs).reshape(-1)
      n = min(count, flat.size)
      for i in np.argpartition(-flat, n - 1)[:n]:
        a, b = divmod(int(i), pairs.shape[1])
        best.append((start + a, b, float(pairs[a, b])))
    return sorted(best, key=lambda pair: -abs(pair[2]))[:count]


def qk_attribution(
  forward: Callable,
  params: PyTree,
  frozen: Frozen,
  layer: int,
  head: int,
  query: int,
  key: int,
  batch: int = 64,
) -> QKAttribution:
  """Divides one score among pairs of nodes.

  Args:
    forward: the model of the run.
    params: its parameters.
    frozen: the run.
    layer, head: the head.
    query, key: positions; negative ones count from the end.
    batch: rows of one walk.

  Raises:
    CircuitError: another model than that of the run; no such head or positions, a key after its query, queries, keys
      or scores that are not of this form.
  """
  T, layout = len(frozen.tokens), frozen.layout
  layer, head = check_whole('layer', layer), check_whole('head', head)
  query, key = check_whole('query', query), check_whole('key', key)
  t, s = (p % T if -T <= p < T else T for p in (query, key))
  if not (0 <= layer < layout.n_layers and 0 <= head < layout.n_heads and s <= t < T):
    raise CircuitError(
      f'head {layer}.{head} from position {query} to {key}',
      cause=f'{layout.n_layers} layers, {layout.n_heads} heads, {T} positions, the key not after the query',
    )
  tokens = frozen.tokens[None]
  x = _norm_input(frozen, layer)
  _check_same_run(forward, params, frozen, layer, x)
  cut = lambda a, b: harvest.subgraph(forward, f'{a}.{layer}', f'{b}.{layer}')(params, tokens)  # noqa: E731
  kv_head = head // (layout.n_heads // layout.n_kv_heads)
  q = _read(cut('attn_norm', 'q'), x, t, head, f'q.{layer}')
  k = _read(cut('attn_norm', 'k'), x, s, kv_head, f'k.{layer}')
  scale, offset, score, capped = _score(cut('q', 'attn_scores'), q, k, (t, s, head), layer)
  of_query, of_key = (_rows(frozen, layer, *pair, batch).table() for pair in ((t, q), (s, k)))
  return QKAttribution(of_query, of_key, scale, offset, score, capped)


def _norm_input(frozen: Frozen, layer: int) -> Float[Array, '1 T D']:
  """'attn_norm' of a layer in the run."""
  norm = frozen.maps.attn_norm.layer(layer)
  x = norm.linear(frozen.stream[2 * layer], frozen.scales.attn_norm[layer]) + norm.bias
  return x[None]


def _check_same_run(
  forward: Callable, params: PyTree, frozen: Frozen, layer: int, x: Array
) -> None:
  """Raises CircuitError unless the model makes the norm and the patterns of the run."""
  read = keep(read_sites, forward, ('attn_norm', 'attn_probs'))
  acts = read(params, frozen.tokens[None], {})
  found = (acts['attn_norm'], x[0]), (acts['attn_probs'], frozen.probs[layer])
  error = max(float(deviation(a[layer], b)) for a, b in found)
  if not error <= SAME:
    raise CircuitError(
      f'norm or patterns of layer {layer} differ from those of the frozen run by {error:.2g} of the largest value',
      where=f'attn_norm.{layer}, attn_probs.{layer}',
      cause='another model, other parameters, or a run whose padding moved the positions',
      hint='Frozen.of(...) again, with this model',
    )


@dataclasses.dataclass(frozen=True)
class _Read:
  """q or k of one head and position as an affine map of the norm.

  Attributes:
    weight: [D, H].
    bias: [H].
    value: value in the run, [H].
    whole: q or k of all heads and positions, [1, T, N, H] or [1, S, K, H].
  """

  weight: Array
  bias: Array
  value: Array
  whole: Array


def _read(cut: Subgraph, x: Array, at: int, head: int, name: str) -> _Read:
  whole = cut(x)
  value = whole[0, at, head]
  tolerance = 10 * tolerance_of(x.dtype)
  for size in (1.0, TINY):
    weight, bias = _weights(cut, x, jnp.asarray(size, x.dtype), at, head)
    found = precision.matmul(x[0, at], weight) + bias
    scale = jnp.ones((), x.dtype)
    if size == TINY and not np.any(np.asarray(bias)):
      scale = jnp.sum(found * value) / jnp.maximum(jnp.sum(found**2), jnp.finfo(x.dtype).tiny)
    if float(deviation(found * scale, value)) <= tolerance:
      return _Read(weight * scale, bias * scale, value, whole)
  raise CircuitError(
    f'{name!r} is not a linear function of the norm, nor one with a norm of its own',
    where=name,
    cause='another function between attn_norm and this site, or a bias before its norm',
  )


def _weights(cut: Subgraph, x: Array, size: Array, at: int, head: int) -> tuple[Array, Array]:
  """Weight [D, H] and bias [H] at inputs of some size."""
  found = _evaluate(cut, x, size)
  zero = cut(jnp.zeros_like(x))[0, at, head]
  return (found[:, at, head] - zero) / size, zero


@jax.jit
def _evaluate(cut: Subgraph, x: Array, size: Array) -> Array:
  """Outputs at the unit vectors, [D, T, heads, H]."""
  units = jnp.eye(x.shape[-1], dtype=x.dtype) * size
  return jax.lax.map(lambda e_D: cut(jnp.broadcast_to(e_D, x.shape))[0], units)


def _score(
  cut: Subgraph, q: _Read, k: _Read, at: tuple[int, int, int], layer: int
) -> tuple[float, float, float, float]:
  """Scale, offset, score before a cap and score of the run."""
  t, s, head = at
  small = 1e-3  # so small that a soft-cap is linear, and large enough for the digits of float32
  score = lambda factor: float(cut(q.whole * factor)[0, head, t, s])  # noqa: E731
  offset, capped, product = score(0.0), score(1.0), float(precision.matmul(q.value, k.value))
  if capped < -1e29:
    raise CircuitError(
      f'position {t} does not see position {s} in layer {layer}', cause='a window, or a mask'
    )
  scale = (score(small) - offset) / (small * product) if product else 1.0
  raw = scale * product + offset
  near = 1e-3 * max(abs(raw), 1.0)
  if abs(raw - capped) <= near:
    # Without a cap the scale is read off the run, which has all digits.
    scale = (capped - offset) / product if product else scale
    return scale, offset, capped, capped
  bound = abs(score(1e6))
  if offset == 0 and bound and abs(bound * np.tanh(raw / bound) - capped) <= near:
    raw = bound * float(np.arctanh(np.clip(capped / bound, -1 + 1e-15, 1 - 1e-15)))
    return raw / product, offset, raw, capped
  raise CircuitError(
    f"'attn_scores.{layer}' is not linear in q · k, nor a soft-cap of such a score",
    where=f'attn_scores.{layer}',
  )


def _rows(frozen: Frozen, layer: int, at: int, read: _Read, batch: int) -> Rows:
  """Rows of all coordinates of q or k."""
  norm, scale = frozen.maps.attn_norm.layer(layer), frozen.scales.attn_norm[layer, at]
  vector = jax.vmap(lambda w_D: norm.transpose(w_D, scale), in_axes=1)(read.weight)
  own = precision.matmul(norm.bias, read.weight) + read.bias
  H, kind = len(vector), frozen.layout.dtype
  targets = Targets(
    np.full(H, 2 * layer, np.int32), np.full(H, at, np.int32), np.asarray(vector),
    np.asarray(own, kind), np.asarray(read.value, kind), np.ones(H, kind),
  )  # fmt: skip
  return attribute_rows(frozen, targets, min(batch, H))
