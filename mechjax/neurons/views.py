"""Logits of an ablated neuron, as factors of vectors that tokens and neurons have on their own.

Neuron i of the last layer changes its activation by d. With x the final stream (centred for LayerNorm), s its scale, w
the neuron's direction and D the width (Stolfo et al. 2024, arXiv 2406.16254, section 3.2):

    direct   l_D = A^T (x + d w) / s                       the final norm's scale frozen
    total    l_T = (s / s_i) l_D                           s_i^2 = s^2 + (2 d x.w + d^2 |w|^2) / D

The total effect is the direct one at another temperature, so both come from one vector. With a norm after the MLP
(Gemma 2 and 3), m = gain h / rho is added, with h the output of the MLP and rho its root mean square, and d w becomes
(q - 1) m + q (d / rho) gain w, with q = rho / rho_i and rho_i^2 = rho^2 + (2 d h.w + d^2 |w|^2) / D. Then there are
three nested effects:

    total         both norms react
    mlp_frozen    rho is frozen (q = 1): d w becomes (d / rho) gain w
    direct        rho and s are frozen

The frequency-frozen effect is the total one with the component of the logits along v put back: l_T + (l.v - l_T.v) v.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mechjax import precision
from mechjax.neurons.frequency import Frequency
from mechjax.neurons.readout import Readout
from mechjax.neurons.vocabulary import Factors
from mechjax.neurons.writes import NeuronWrites


class MLPTerms(NamedTuple):
  """The output of an MLP with a norm after it, of B tokens.

  Attributes:
    before: h, the sum over neurons before the norm, [B, D].
    rms: rho, its root mean square, [B].
    out: m, as it is added to the stream and the readout sees it, [B, D].
    logits: A^T m / s, less `shift`, [V, B].
    shift: A^T m / s at the likeliest token, [B].
  """

  before: Float[Array, 'B D']
  rms: Float[Array, ' B']
  out: Float[Array, 'B D']
  logits: Float[Array, 'V B']
  shift: Float[Array, ' B']


class TokenTerms(NamedTuple):
  """Terms that the effects of all neurons on B tokens have in common.

  Attributes:
    x: final streams as the readout sees them, [B, D].
    scale: s, [B].
    logits: A^T x / s, less `shift`, [V, B].
    shift: A^T x / s at the likeliest token, [B]; 0 where logits have a cap, which would see a shift.
    likely: id of the likeliest token, [B].
    next: ids of the tokens that follow, [B].
    mlp: None without a norm after the MLP.
  """

  x: Float[Array, 'B D']
  scale: Float[Array, ' B']
  logits: Float[Array, 'V B']
  shift: Float[Array, ' B']
  likely: Int[Array, ' B']
  next: Int[Array, ' B']
  mlp: MLPTerms | None


def prepare_tokens(
  readout: Readout,
  writes: NeuronWrites,
  x: Float[Array, 'B D'],
  a: Float[Array, 'B F'],
  next_B: Int[Array, ' B'],
) -> TokenTerms:
  """Evaluates the terms of B tokens, from their final streams and the activations of all neurons."""
  dtype = readout.rows.dtype
  x_BxD = readout.centre(x.astype(dtype))
  scale_B = readout.scale(x_BxD)

  def read(vectors_BxD: Array) -> Array:
    return precision.einsum('vd,bd->vb', readout.rows, vectors_BxD / scale_B[:, None])

  logits_VxB = read(x_BxD)
  bias = 0 if readout.bias is None else readout.bias[:, None]
  likely_B = jnp.argmax(logits_VxB + bias, axis=0)
  columns = jnp.arange(len(likely_B))

  def shift(vectors_VxB: Array) -> tuple[Array, Array]:
    if readout.softcap is not None:
      return vectors_VxB, jnp.zeros_like(scale_B)
    shift_B = vectors_VxB[likely_B, columns]
    return vectors_VxB - shift_B, shift_B

  mlp = None
  if writes.gain is not None:
    h_BxD = writes.sum(a).astype(dtype)
    rms_B = jnp.sqrt(jnp.mean(h_BxD**2, axis=-1) + writes.eps)
    out_BxD = readout.centre(h_BxD / rms_B[:, None] * writes.gain.astype(dtype))
    mlp = MLPTerms(h_BxD, rms_B, out_BxD, *shift(read(out_BxD)))
  return TokenTerms(x_BxD, scale_B, *shift(logits_VxB), likely_B, next_B, mlp)


def find_shift(factors: Factors, tokens: TokenTerms) -> Float[Array, 'B F']:
  """Sum of the shifts in the logits of each pair, [B, F]."""
  found = _multiply(factors.plain, tokens.shift)
  if factors.mlp is None or tokens.mlp is None:
    return found
  return found + factors.mlp * tokens.mlp.shift[:, None]


def _multiply(factor_BxF: Array | None, x_B: Array) -> Array:
  """Product of a factor of pairs with numbers of tokens."""
  return x_B[:, None] if factor_BxF is None else factor_BxF * x_B[:, None]


def find_plain(tokens: TokenTerms) -> Factors:
  """Factors of the prediction without an ablation, [B, 1]."""
  return Factors(jnp.zeros((len(tokens.x), 1), tokens.x.dtype))


def find_factors(
  readout: Readout, writes: NeuronWrites, tokens: TokenTerms, d_BxF: Float[Array, 'B F']
) -> dict[str, Factors]:
  """Factors of the logits of each pair under each effect.

  Args:
    readout: the readout.
    writes: the neurons of the block.
    tokens: terms of the tokens.
    d_BxF: changes of the activations.

  Returns:
    Keyed by 'total', 'mlp_frozen' (only with a norm after the MLP) and 'direct', each once: an effect that equals one
    before it, because there is no norm that could react, is left out.
  """
  found: dict[str, Factors] = {}
  w_FxD = readout.centre(writes.directions.astype(d_BxF.dtype))
  delta_BxF = d_BxF
  if tokens.mlp is not None:
    delta_BxF = d_BxF / tokens.mlp.rms[:, None]
    found['total'] = _with_mlp_norm(readout, writes, tokens, tokens.mlp, d_BxF)
  direct = Factors(delta_BxF / tokens.scale[:, None])
  if readout.norm != 'none':
    r_BxF = _scale_ratio(readout, tokens, _square(tokens.x, w_FxD, delta_BxF))
    name = 'total' if tokens.mlp is None else 'mlp_frozen'
    found[name] = Factors(r_BxF * direct.neuron, r_BxF)
    found['direct'] = direct
  else:
    found['total' if tokens.mlp is None else 'mlp_frozen'] = direct
  return found


def _with_mlp_norm(
  readout: Readout, writes: NeuronWrites, tokens: TokenTerms, mlp: MLPTerms, d_BxF: Array
) -> Factors:
  """Factors where both norms react."""
  w_FxD = readout.centre(writes.directions.astype(d_BxF.dtype))
  change_BxF = _square(mlp.before, writes.W_out.astype(d_BxF.dtype), d_BxF)
  mean_B = mlp.rms**2
  q_BxF = _ratio(change_BxF / (w_FxD.shape[1] * mean_B[:, None]), writes.eps / mean_B)
  p_BxF, delta_BxF = q_BxF - 1, q_BxF * d_BxF / mlp.rms[:, None]
  # |(q - 1) m + delta w|^2 and its product with x, from products of pairs.
  square_BxF = (
    _square(tokens.x, w_FxD, delta_BxF)
    + p_BxF**2 * jnp.sum(mlp.out**2, axis=-1)[:, None]
    + 2 * p_BxF * jnp.sum(tokens.x * mlp.out, axis=-1)[:, None]
    + 2 * p_BxF * delta_BxF * precision.einsum('bd,fd->bf', mlp.out, w_FxD)
  )
  r_BxF = _scale_ratio(readout, tokens, square_BxF)
  return Factors(r_BxF * delta_BxF / tokens.scale[:, None], r_BxF, mlp=r_BxF * p_BxF)


def _square(x_BxD: Array, w_FxD: Array, d_BxF: Array) -> Array:
  """|x + d w|^2 - |x|^2 of each pair."""
  return 2 * d_BxF * precision.einsum('bd,fd->bf', x_BxD, w_FxD) + d_BxF**2 * jnp.sum(w_FxD**2, -1)


def _scale_ratio(readout: Readout, tokens: TokenTerms, square_BxF: Array) -> Array:
  """s / s_i of each pair, from the change of the squared length of the stream."""
  if readout.norm == 'none':
    return jnp.ones_like(square_BxF)
  mean_B = tokens.scale**2
  change_BxF = square_BxF / (tokens.x.shape[1] * mean_B[:, None])
  return _ratio(change_BxF, readout.eps / mean_B)


def _ratio(change_BxF: Array, least_B: Array) -> Array:
  """1 / sqrt(1 + change); `least` is the share of eps, below which only rounding can bring 1 + change."""
  least_Bx1 = jnp.maximum(least_B, jnp.finfo(change_BxF.dtype).tiny)[:, None]
  return jax.lax.rsqrt(jnp.maximum(1 + change_BxF, least_Bx1))


def project(
  factors: Factors,
  readout: Readout,
  writes: NeuronWrites,
  tokens: TokenTerms,
  pulled_D: Float[Array, ' D'],
  bias: Float[Array, ''],
) -> Float[Array, 'B F']:
  """Product of the logits of each pair with a vector over the vocabulary, of which `pulled_D` is A times it.

  Args:
    factors: factors of the logits.
    readout, writes, tokens: as in `find_factors`.
    pulled_D: A v.
    bias: product of the bias of the logits with v.
  """
  per_scale_B = 1 / tokens.scale
  plain_B = precision.matmul(tokens.x, pulled_D) * per_scale_B
  out = _multiply(factors.plain, plain_B) + bias
  w_FxD = readout.centre(writes.directions.astype(pulled_D.dtype))
  out += factors.neuron * precision.matmul(w_FxD, pulled_D)
  if factors.mlp is not None and tokens.mlp is not None:
    mlp_B = precision.matmul(tokens.mlp.out, pulled_D) * per_scale_B
    out += factors.mlp * mlp_B[:, None]
  return out


def freeze_frequency(
  total: Factors,
  readout: Readout,
  writes: NeuronWrites,
  tokens: TokenTerms,
  frequency: Frequency,
) -> Factors:
  """Factors of the total effect with the component along the direction of frequency put back."""
  parts = readout, writes, tokens, frequency.pulled, frequency.bias
  zeros = Factors(jnp.zeros_like(total.neuron))
  return total._replace(along=project(zeros, *parts) - project(total, *parts))
