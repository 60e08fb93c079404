"""Composition scores: which heads read the output of which earlier heads, from weights alone.

A head of a later layer can read an earlier head's output through its queries, its keys or its values. With W_OV = W_V
W_O (a map from the stream to the stream) and W_QK = W_Q W_K^T (a bilinear form of two streams), rows being vectors, the
score of heads 1 and 2 is the length of a product relative to the product of the lengths (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"; Frobenius norms):

    Q   |W_OV1 W_QK2| / |W_OV1| |W_QK2|        K   |W_OV1 W_QK2^T| / ...        V   |W_OV1 W_OV2| / |W_OV1| |W_OV2|

    weights = CompositionWeights.of(**take_composition_weights(model.params, model.config))
    scores = measure_composition(weights)
    scores.q[l1, n1, l2, n2], scores.baseline, scores.top('k', 10)

The baseline is exact for any two heads that have nothing to do with each other: if one is rotated at random, the mean
square of the score is 1/D (1/(D - 1) after LayerNorm, which removes one direction). Query heads of a group share their
keys and values. Scales of norms are folded into the matrices that they precede or follow.

How. With W_V1 = Q R (R is [H, H]), |W_V1 W_O1 X| = |R W_O1 X|: every head is stored as two matrices of rank H, and the
scores of all pairs of two layers are the blocks of one product.

Sharp edges. Positions are left out: queries and keys as before rotary embeddings. So are the denominators of norms,
those of queries and keys included, and the norm after an attention that also contains the other heads. Scores say where
weights are aligned, not that a text uses it.

Letters: L layers, N query heads, K key-value heads, D width, H head width.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.decomposition.array_checks import as_common, check_arrays, check_count, check_finite
from mechjax.errors import CircuitError, unknown

NORMS = ('rms', 'layer', 'none')
KINDS = ('q', 'k', 'v')


@dataclasses.dataclass(frozen=True, eq=False)
class CompositionWeights:
  """Matrices of all heads, with the scales of norms folded in; make one with `of`.

  Attributes:
    W_Q: queries, [L, D, N, H].
    W_K, W_V: keys and values, [L, D, K, H].
    W_O: outputs, [L, N, H, D].
    centred: whether heads read through LayerNorm.
  """

  W_Q: Float[Array, 'L D N H']
  W_K: Float[Array, 'L D K H']
  W_V: Float[Array, 'L D K H']
  W_O: Float[Array, 'L N H D']
  centred: bool

  @classmethod
  def of(
    cls,
    *,
    W_Q: Float[ArrayLike, 'L D N H'],
    W_K: Float[ArrayLike, 'L D K H'],
    W_V: Float[ArrayLike, 'L D K H'],
    W_O: Float[ArrayLike, 'L N H D'],
    attn_gain: Float[ArrayLike, 'L D'] | None = None,
    post_gain: Float[ArrayLike, 'L D'] | None = None,
    q_gain: Float[ArrayLike, 'L H'] | None = None,
    k_gain: Float[ArrayLike, 'L H'] | None = None,
    norm: str = 'rms',
  ) -> CompositionWeights:
    """Checks weights and folds the scales of norms, each as it is multiplied.

    Args:
      W_Q, W_K, W_V, W_O: the matrices.
      attn_gain: scale of the norm before the attention.
      post_gain: scale of a norm after it.
      q_gain, k_gain: scales of norms of queries and keys.
      norm: 'rms', 'layer' or 'none', the norm before the attention.

    Raises:
      CircuitError: shapes that do not fit, NaN, an unknown norm.
    """
    if norm not in NORMS:
      raise unknown(CircuitError, 'norm', norm, NORMS)
    given = {'W_Q': (W_Q, 'L D N H'), 'W_K': (W_K, 'L D K H'), 'W_V': (W_V, 'L D K H')}
    given |= {'W_O': (W_O, 'L N H D')}
    gains = {'attn_gain': (attn_gain, 'L D'), 'post_gain': (post_gain, 'L D')}
    gains |= {'q_gain': (q_gain, 'L H'), 'k_gain': (k_gain, 'L H')}
    sizes = check_arrays(given | {n: (x, axes) for n, (x, axes) in gains.items() if x is not None})  # type: ignore[misc]
    if sizes['N'] % sizes['K']:
      raise CircuitError(
        f'{sizes["N"]} query heads are not a multiple of {sizes["K"]} key-value heads'
      )
    L, D, H = (sizes[letter] for letter in 'LDH')
    ones = {'D': np.ones((L, D), np.float32), 'H': np.ones((L, H), np.float32)}
    full = [ones[axes[-1]] if x is None else x for x, axes in gains.values()]
    found = _fold(*as_common(W_Q, W_K, W_V, W_O, *full), centred=norm == 'layer')
    for name, x in zip(given, found):
      check_finite(name, x)
    Q, K, V, O = found
    return cls(Q, K, V, O, norm == 'layer')


class ComposedPair(NamedTuple):
  """Two heads and the score of their composition."""

  lower_layer: int
  lower_head: int
  upper_layer: int
  upper_head: int
  score: float


@dataclasses.dataclass(frozen=True, eq=False)
class CompositionScores:
  """Composition of every pair of heads.

  Attributes:
    q, k, v: scores from 0 to 1, [lower layer, lower head, upper layer, upper head]; NaN unless the first layer is below
      the second.
    baseline: root mean square of the score of matrices that are rotated at random.
  """

  q: Float[np.ndarray, 'L N L N']
  k: Float[np.ndarray, 'L N L N']
  v: Float[np.ndarray, 'L N L N']
  baseline: float

  def scores(self, kind: str) -> Float[np.ndarray, 'L N L N']:
    """Scores of one kind: 'q', 'k' or 'v'.

    Raises:
      CircuitError: another kind.
    """
    if kind not in KINDS:
      raise unknown(CircuitError, 'kind', kind, KINDS)
    return getattr(self, kind)

  def top(self, kind: str, n: int) -> list[ComposedPair]:
    """The `n` pairs of heads with the largest scores of one kind, in descending order."""
    scores = self.scores(kind)
    order = np.argsort(-scores, axis=None, kind='stable')[: check_count('n', n)]  # NaN comes last
    places = [np.unravel_index(i, scores.shape) for i in order]
    return [
      ComposedPair(int(l), int(n), int(u), int(m), float(scores[l, n, u, m]))
      for l, n, u, m in places
      if np.isfinite(scores[l, n, u, m])
    ]


def measure_composition(weights: CompositionWeights) -> CompositionScores:
  """Measures Q-, K- and V-composition of all heads with all heads of later layers.

  Raises:
    CircuitError: a head whose matrices are zero.
  """
  writes, reads = _factor(weights)
  lengths = {'W_V W_O': writes, 'W_Q W_K^T': reads[0]}
  for name, x in lengths.items():
    zero = np.argwhere(~(np.asarray(jnp.abs(x).max((-2, -1))) > 0))
    if len(zero):
      raise CircuitError(
        f'{name} of head {zero[0, 1]} of layer {zero[0, 0]} is zero: it has no score'
      )
  L, N, _, D = writes.shape
  scores = np.full((3, L, N, L, N), np.nan)
  for upper in range(1, L):
    for lower in range(upper):
      found = _compose(writes, reads, jnp.int32(lower), jnp.int32(upper))
      scores[:, lower, :, upper] = np.asarray(found)
  q, k, v = scores
  return CompositionScores(q, k, v, (D - weights.centred) ** -0.5)


def _fold(
  W_Q: Array,
  W_K: Array,
  W_V: Array,
  W_O: Array,
  attn_gain: Array,
  post_gain: Array,
  q_gain: Array,
  k_gain: Array,
  *,
  centred: bool,
) -> list[Array]:
  reads = [W * attn_gain[:, :, None, None] for W in (W_Q, W_K, W_V)]
  if centred:  # LayerNorm takes the mean off the stream
    reads = [W - W.mean(1, keepdims=True) for W in reads]
    W_O = W_O - W_O.mean(-1, keepdims=True)
  reads[0] = reads[0] * q_gain[:, None, None]
  reads[1] = reads[1] * k_gain[:, None, None]
  return [*reads, W_O * post_gain[:, None, None]]


@jax.jit
def _factor_arrays(
  W_Q: Array, W_K: Array, W_V: Array, W_O: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
  """Heads as R W_O [L, N, H, D] and, for queries, keys and values, W R^T [L, N, D, H]."""
  group = W_Q.shape[2] // W_K.shape[2]
  Q = W_Q.swapaxes(1, 2)
  K, V = (jnp.repeat(W.swapaxes(1, 2), group, axis=1) for W in (W_K, W_V))
  root = lambda W: jnp.linalg.qr(W, mode='r')  # noqa: E731
  writes = precision.matmul(root(V), W_O)
  read = lambda W, other: precision.einsum('lndh,lngh->lndg', W, root(other))  # noqa: E731
  return writes, (read(Q, K), read(K, Q), read(V, W_O.swapaxes(-1, -2)))


def _factor(weights: CompositionWeights) -> tuple[Array, tuple[Array, Array, Array]]:
  return _factor_arrays(weights.W_Q, weights.W_K, weights.W_V, weights.W_O)


@jax.jit
def _compose(
  writes: Array, reads: tuple[Array, Array, Array], lower: Array, upper: Array
) -> Float[Array, '3 N N']:
  """Scores of the heads of two layers, for queries, keys and values."""
  O = writes[lower]
  length = lambda W: jnp.sqrt(jnp.sum(W * W, (-2, -1)))  # noqa: E731

  def score(W: Array) -> Array:
    product = precision.einsum('nhd,mdg->nmhg', O, W)
    return length(product) / (length(O)[:, None] * length(W))

  return jnp.stack([score(W[upper]) for W in reads])
