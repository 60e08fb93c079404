"""The weights through which the heads of a model read the stream and write to the logits.

A question about a head that needs no run of the model (which fact does it move, and to which token) needs a few arrays
and the kind of the norm. Models store them in different ways, so they enter here as arrays, once, and are checked:

    weights = HeadWeights.of(W_V=..., W_O=..., W_U=..., attn_gain=..., final_gain=..., norm='rms', eps=1e-6)
    weights = HeadWeights.of(**take_head_weights(model.params, model.config))      of `mechjax.models.head_weights`

Sharp edge: biases are left out. They add constants to what a head writes, which vanish where scores are centred.

Letters: L layers, D width, N query heads, K key-value heads, H head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.errors import ProbingError, unknown

NORMS = ('rms', 'layer', 'none')


@dataclasses.dataclass(frozen=True, eq=False)
class HeadWeights:
  """Weights through which the heads of a model read the stream and write to the logits; make one with `of`.

  Attributes:
    W_V: values, [L, D, K, H].
    W_O: outputs, [L, N, H, D]; query head n reads the key-value head n // (N/K).
    W_U: unembedding, [D, V].
    attn_gain: scale of the norm before the attention, as it is multiplied, [L, D]; None without one.
    post_gain: scale of a norm after it, [L, D]; None without one.
    final_gain: scale of the norm before the unembedding, [D]; None without one.
    norm: 'rms', 'layer' or 'none'.
    eps: added to the mean square in the norm before the attention.
  """

  W_V: Float[np.ndarray | Array, 'L D K H']
  W_O: Float[np.ndarray | Array, 'L N H D']
  W_U: Float[np.ndarray | Array, 'D V']
  attn_gain: Float[np.ndarray | Array, 'L D'] | None
  post_gain: Float[np.ndarray | Array, 'L D'] | None
  final_gain: Float[np.ndarray | Array, ' D'] | None
  norm: str
  eps: float

  @classmethod
  def of(
    cls,
    *,
    W_V: Float[np.ndarray | Array, ' ...'],
    W_O: Float[np.ndarray | Array, ' ...'],
    W_U: Float[np.ndarray | Array, ' ...'],
    attn_gain: Float[np.ndarray | Array, ' ...'] | None,
    post_gain: Float[np.ndarray | Array, ' ...'] | None = None,
    final_gain: Float[np.ndarray | Array, ' ...'] | None,
    norm: str = 'rms',
    eps: float = 1e-6,
  ) -> HeadWeights:
    """Checks weights; arguments as in the attributes.

    Raises:
      ProbingError: shapes that do not fit together, an unknown norm, a scale without a norm.
    """
    if norm not in NORMS:
      raise unknown(ProbingError, 'norm', norm, NORMS)
    if np.ndim(W_V) != 4 or np.ndim(W_O) != 4 or np.ndim(W_U) != 2:
      raise ProbingError(
        f'W_V {list(np.shape(W_V))}, W_O {list(np.shape(W_O))}, W_U {list(np.shape(W_U))} are not weights of heads',
        hint='W_V [L, D, K, H], W_O [L, N, H, D], W_U [D, V]',
      )
    (L, D, K, H), N = np.shape(W_V), np.shape(W_O)[1]
    if np.shape(W_O) != (L, N, H, D) or np.shape(W_U)[0] != D or N % K:
      raise ProbingError(
        f'W_V {[L, D, K, H]}, W_O {list(np.shape(W_O))} and W_U {list(np.shape(W_U))} do not fit together',
        cause='weights of two models, or axes in another order',
        hint='W_V [L, D, K, H], W_O [L, N, H, D], W_U [D, V], with N a multiple of K',
      )
    gains = {'attn_gain': (attn_gain, (L, D)), 'post_gain': (post_gain, (L, D))}
    for name, (gain, shape) in {**gains, 'final_gain': (final_gain, (D,))}.items():
      if gain is not None and np.shape(gain) != shape:
        raise ProbingError(f'{name} has shape {list(np.shape(gain))}, not {list(shape)}')
      if gain is not None and norm == 'none':
        raise ProbingError(f"{name} is given, and norm='none' has no scale")
    if attn_gain is None and norm != 'none':
      raise ProbingError(
        f'there is no attn_gain, and the heads read through norm={norm!r}',
        hint='ones [L, D] for a norm without a scale',
      )
    return cls(W_V, W_O, W_U, attn_gain, post_gain, final_gain, norm, float(eps))

  @property
  def shape(self) -> tuple[int, int]:
    """Numbers of layers and of query heads."""
    return self.W_O.shape[0], self.W_O.shape[1]


def normalise(x: Float[Array, '*batch D'], norm: str, eps: float) -> Float[Array, '*batch D']:
  """x / sqrt(mean(x^2) + eps), in float32 or wider; of LayerNorm after the mean of x is taken off; x without a norm."""
  x = precision.wide(x)
  if norm == 'none':
    return x
  if norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + eps)
