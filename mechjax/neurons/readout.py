"""The readout of a model: final norm and unembedding, as one matrix and one scale.

Every question about the last layer is a question about this map from the residual stream to logits, and the norm is
what makes it interesting: a neuron can lower the confidence of a prediction by writing a vector that no token reads,
because the norm divides everything by its length.

    logits = A^T x / s + bias          s = sqrt(mean x^2 + eps)
    A = diag(gain) W_U, minus its mean over the vocabulary          [D, V]

Softmax does not see the mean over the vocabulary, and it must be subtracted before singular vectors are taken: in a
model with RMSNorm it is a direction that shifts all logits equally, and it would hide among the directions that are
read. In a model with LayerNorm the mean over D is taken off A and off x as well.

    readout = Readout.of(gain, W_U, eps, norm='rms')
    readout.singular_values, readout.find_null_space(6), readout.logits(x)

For our own decoder, `mechjax.models.readers` gives the arguments.

Sharp edges: with a cap of the logits (Gemma 2) the mean over the vocabulary is visible, so it stays in `rows`; the
singular vectors are those without it, and do not know the cap. The logits are those of the model up to a constant of
each position, or equal with a cap.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from mechjax import precision
from mechjax.errors import NeuronError, unknown
from mechjax.logits import log_probs
from mechjax.neurons.checks import check_close, check_count, check_floats

NORMS = ('rms', 'layer', 'none')
_ROWS = 8192
"""Tokens of the vocabulary that are converted to float64 at once."""


class Spectrum(NamedTuple):
  """Sums over the vocabulary of products of the columns of the centred A, float64.

  Attributes:
    gram: A A^T, [D, D].
    unit_gram: the same of columns at length 1, [D, D].
    unit_sum: sum of the columns at length 1, [D].
    zeros: number of columns without length.
    values: singular values of A, in descending order.
    vectors: the left singular vectors, [D, values].
  """

  gram: Float64[np.ndarray, 'D D']
  unit_gram: Float64[np.ndarray, 'D D']
  unit_sum: Float64[np.ndarray, ' D']
  zeros: int
  values: Float64[np.ndarray, ' n']
  vectors: Float64[np.ndarray, 'D n']


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['rows', 'bias'],
  meta_fields=['eps', 'norm', 'softcap'],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
  """The map from the final residual stream to logits; make one with `Readout.of`.

  Attributes:
    rows: A^T, a row for each token, in float32 or wider, [V, D].
    bias: added to the logits, [V]; None without one.
    eps: added to the mean square in the norm.
    norm: 'rms', 'layer' or 'none'.
    softcap: c of logits c * tanh(logits / c); None for no cap.
  """

  rows: Float[Array, 'V D']
  bias: Float[Array, ' V'] | None
  eps: float
  norm: str
  softcap: float | None

  @classmethod
  def of(
    cls,
    gain: Float[Array | np.ndarray, ' D'] | None,
    W_U: Float[Array | np.ndarray, 'D V'],
    eps: float,
    norm: str = 'rms',
    *,
    bias: Float[Array | np.ndarray, ' D'] | None = None,
    logit_bias: Float[Array | np.ndarray, ' V'] | None = None,
    softcap: float | None = None,
  ) -> Readout:
    """Folds the final norm into the unembedding.

    Args:
      gain: the final norm's scale as it is multiplied (for Gemma, 1 + the value of the file), [D]; None for ones.
      W_U: the unembedding, [D, V].
      eps: added to the mean square, or to the variance.
      norm: 'rms'; 'layer', where the mean is taken off; or 'none', a model without a final norm.
      bias: the final norm's bias, [D].
      logit_bias: bias of the logits, [V].
      softcap: cap of the logits.

    Raises:
      NeuronError: widths that do not fit, NaN, an unknown norm, a gain or a bias without a norm, an eps or a cap that
        has no meaning.
    """
    if norm not in NORMS:
      raise unknown(NeuronError, 'norm', norm, NORMS)
    check_floats('W_U', W_U, 'D V')
    D, V = W_U.shape
    if D < 2 or V < 2:
      raise NeuronError(f'W_U has shape {[D, V]}; expected at least two dimensions and two tokens')
    for name, x, axes in (('gain', gain, 'D'), ('bias', bias, 'D'), ('logit_bias', logit_bias, 'V')):  # fmt: skip
      if x is not None:
        check_floats(name, x, axes, {'D': D, 'V': V})
        if norm == 'none' and name != 'logit_bias':
          raise NeuronError(f"norm='none' with a {name}: only a norm has one")
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real) or not 0 <= eps < math.inf:
      raise NeuronError(f'eps={eps!r} should be a number, at least 0')
    if softcap is not None and not 0 < softcap < math.inf:
      raise NeuronError(f'softcap={softcap!r} should be positive, or None')
    # Transposed here, because a tied unembedding is a transposed view of rows.
    folded, shift = _fold(jnp.asarray(W_U.T), gain, bias, logit_bias, norm, softcap is None)
    return cls(folded, shift, float(eps), norm, None if softcap is None else float(softcap))

  @property
  def width(self) -> int:
    """D."""
    return self.rows.shape[1]

  @property
  def n_vocab(self) -> int:
    """V."""
    return self.rows.shape[0]

  def centre(self, x: Float[Array, '*batch D']) -> Float[Array, '*batch D']:
    """Vectors as the readout sees them: without their mean in a model with LayerNorm, otherwise unchanged."""
    return x - jnp.mean(x, axis=-1, keepdims=True) if self.norm == 'layer' else x

  def scale(self, x: Float[Array, '*batch D']) -> Float[Array, '*batch']:
    """The number s that a stream, `centre`d, is divided by; 1 without a final norm."""
    if self.norm == 'none':
      return jnp.ones(x.shape[:-1], x.dtype)
    return jnp.sqrt(jnp.mean(x**2, axis=-1) + self.eps)

  def logits(self, x: Float[Array, '*batch D']) -> Float[Array, '*batch V']:
    """Logits of residual streams, in float32 or wider, up to a constant of each position (equal with a cap)."""
    centred = self.centre(precision.wide(x))
    out = precision.einsum('...d,vd->...v', centred / self.scale(centred)[..., None], self.rows)
    return self.cap(out if self.bias is None else out + self.bias)

  def cap(self, logits: Float[Array, '*batch V']) -> Float[Array, '*batch V']:
    """Logits with the cap of the model, if it has one."""
    return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)

  def check(
    self,
    x: Float[Array | np.ndarray, '*batch D'],
    logits: Float[Array | np.ndarray, '*batch V'],
    tolerance: float = 0.01,
  ) -> None:
    """Compares with logits of the model: a gain, bias or cap that was left out gives plausible numbers otherwise.

    Args:
      x: final residual streams of some tokens.
      logits: the model's logits of these tokens.
      tolerance: largest difference of log-probabilities, in nats; more for weights in bfloat16.

    Raises:
      NeuronError: they differ by more.
    """
    check_floats('x', x, ' '.join(['B'] * (np.ndim(x) - 1) + ['D']), {'D': self.width})
    check_close(
      'log-probabilities of the readout', log_probs(self.logits(jnp.asarray(x))),
      log_probs(jnp.asarray(logits)), tolerance,
      'a gain, bias or cap of the readout that was left out, or a stream that is not the final one',
    )  # fmt: skip

  def pull(self, v: Float64[np.ndarray, ' V']) -> Float64[np.ndarray, ' D']:
    """A v in float64: the product of the logits A^T x with v is that of x with this vector."""
    rows, out = np.asarray(self.rows), np.zeros(self.width)
    for start in range(0, len(v), _ROWS):
      block = slice(start, start + _ROWS)
      out += v[block] @ rows[block].astype(np.float64)
    return out

  @functools.cached_property
  def spectrum(self) -> Spectrum:
    """Products of the columns of A and its singular vectors, computed once, in float64 on the host."""
    rows = np.asarray(self.rows)
    V, D = rows.shape
    mean = rows.mean(0, dtype=np.float64)
    gram, unit_gram, unit_sum, zeros = np.zeros((D, D)), np.zeros((D, D)), np.zeros(D), 0
    for start in range(0, V, _ROWS):
      block = rows[start : start + _ROWS].astype(np.float64) - mean
      gram += block.T @ block
      length = np.linalg.norm(block, axis=1, keepdims=True)
      zeros += int((length == 0).sum())
      block /= np.where(length == 0, 1.0, length)
      unit_gram += block.T @ block
      unit_sum += block.sum(0)
    return Spectrum(gram, unit_gram, unit_sum, zeros, *_decompose(gram, self.norm == 'layer'))

  @property
  def singular_values(self) -> Float64[np.ndarray, ' n']:
    """Singular values of the centred A in descending order: D of them, D - 1 in a model with LayerNorm.

    The direction that is left out there is the constant one, which no stream has after its mean is taken off.
    """
    return self.spectrum.values

  def find_null_space(self, k: int) -> Float64[np.ndarray, 'D k']:
    """The k left singular vectors with the least singular values, in descending order of these, [D, k].

    Raises:
      NeuronError: k is not from 1 to the number of singular values less 1.
    """
    n = len(self.singular_values)
    check_count('k', k)
    if k >= n:
      raise NeuronError(
        f'k={k} directions of {n} leave nothing outside of the null space',
        hint=f'k where the singular values drop, or about {max(1, n // 100)}: a hundredth of the width',
      )
    return self.spectrum.vectors[:, n - k :]


@functools.partial(jax.jit, static_argnames=('norm', 'centred'))
def _fold(
  rows_VxD: Array,
  gain: Array | None,
  bias: Array | None,
  logit_bias: Array | None,
  norm: str,
  centred: bool,
) -> tuple[Array, Array | None]:
  """A^T and the bias of the logits."""
  rows_VxD = precision.wide(rows_VxD)
  dtype = rows_VxD.dtype
  folded_VxD = rows_VxD if gain is None else rows_VxD * gain.astype(dtype)
  if norm == 'layer':
    folded_VxD = folded_VxD - jnp.mean(folded_VxD, axis=1, keepdims=True)
  if centred:
    folded_VxD = folded_VxD - jnp.mean(folded_VxD, axis=0, keepdims=True)
  shifts = [] if bias is None else [precision.matmul(rows_VxD, bias.astype(dtype))]
  shifts += [] if logit_bias is None else [logit_bias.astype(dtype)]
  return folded_VxD, sum(shifts[1:], shifts[0]) if shifts else None


def _decompose(
  gram: Float64[np.ndarray, 'D D'], without_constant: bool
) -> tuple[Float64[np.ndarray, ' n'], Float64[np.ndarray, 'D n']]:
  """Singular values and left singular vectors from A A^T, in descending order."""
  D = len(gram)
  if without_constant:  # lifted above all others, and left out
    gram = gram + (2 * np.trace(gram) + 1) / D
  values, vectors = np.linalg.eigh(gram)
  n = D - without_constant
  return np.sqrt(values[:n].clip(0))[::-1], vectors[:, :n][:, ::-1]
