"""Direct feature attribution: the heads and source tokens that switch on a latent of an attention dictionary.

A dictionary of the site `z` reads the outputs of all heads of a layer, concatenated, before W_O. The pre-activation of
its latent i is linear in them, and each head's output is a sum over source tokens, so both sums are exact (Kissane et
al. 2024, arXiv 2406.17759). With w_n the block of head n in encoder column i and A the attention pattern,

    pre_i(t) = constant_i + sum_n w_n · z_n(t)                       by head
             = constant_i + sum_n sum_s A_n[t, s] w_n · v_k(n)(s)     by head and source; k(n) = n // (N/K)
    constant_i = b_enc,i - W_enc[:, i] · b_dec

    table = dfa(sae, params, [17, 4], z=acts['z.5'], v=acts['v.5'], probs=acts['attn_probs.5'])
    table.by_head                                      [M, B, T, N]
    table.by_source(-1)                                [M, B, N, S] at the last column
    table.constant, table.pre_activations()            [M], [M, B, T]

Grouped heads, sliding windows, capped scores and sinks need no care: the pattern is data. Attention whose output is not
the sum of its values under its pattern (a gate after the sum, as in Qwen3-Next) would give wrong sources, so
sum_s A v = z is checked, and refused where it does not hold. `head_shares` is the static view of the weights alone, and
`direction` the vector through which a recursion into the layers below starts.

Sharp edges. The first token of a text receives much attention: it is one of the sources, and `from_first` reports it
apart. Query heads of one group read the same value vector: `by_value` sums over them before a source token is named. Of
a gated dictionary the pre-activation is that of the magnitude. Parameters that were trained on z / C need `scale=C`.
Latents are chosen by k or by a threshold afterwards: an attribution explains a pre-activation, active or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from mechjax import precision
from mechjax.decomposition.array_checks import (
  as_common,
  check_arrays,
  check_columns,
  check_count,
  check_finite,
  check_ids,
  check_mask,
)
from mechjax.errors import CircuitError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.formats.conventions import fold
from mechjax.sae.pursuit.wrapping import InferenceOnly

Latents = int | Sequence[int] | Int[ArrayLike, ' M']
Positions = int | Int[ArrayLike, ' B']
"""A column of all rows, or one for each row; negative ones count from the last column."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureAttribution:
  """Pre-activations of some latents as sums over heads and source tokens.

  Attributes:
    latents: numbers of the latents.
    by_head: w_n · z_n(t), [M, B, T, N]; 0 at padding.
    constant: the part without an input, [M].
    values: w_n · v(s) of the value vector that head n reads at s, [M, B, N, S].
    probs: attention patterns, [B, N, T, S].
    real: True at tokens, [B, T].
    n_kv_heads: K.
  """

  latents: Int[np.ndarray, ' M']
  by_head: Float[Array, 'M B T N']
  constant: Float[Array, ' M']
  values: Float[Array, 'M B N S']
  probs: Float[Array, 'B N T S']
  real: Bool[np.ndarray, 'B T']
  n_kv_heads: int

  def pre_activations(self) -> Float[Array, 'M B T']:
    """The sum over heads, and the constant."""
    return self.by_head.sum(-1) + self.constant[:, None, None]

  def by_source(self, positions: Positions) -> Float[Array, 'M B N S']:
    """A_n[t, s] w_n · v(s): contributions of each head and source token at one position t of each row.

    Raises:
      CircuitError: a position that does not exist or is padding.
    """
    columns = check_columns('positions', positions, self.real)
    return _multiply(self.probs, self.values, columns)

  def by_value(self, positions: Positions) -> Float[Array, 'M B K S']:
    """Contributions of each value vector: `by_source`, summed over the query heads that read it."""
    by_source = self.by_source(positions)
    M, B, N, S = by_source.shape
    return by_source.reshape(M, B, self.n_kv_heads, N // self.n_kv_heads, S).sum(3)

  def from_first(self) -> Float[Array, 'M B T N']:
    """Contributions of the first token of each row, which are part of `by_head`, at all positions t."""
    columns = self.real.argmax(1)
    return _take_source(self.probs, self.values, columns, jnp.asarray(self.real))


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDirection:
  """The vector by which a latent reads the outputs of the heads of its layer.

  Attributes:
    latent: number of the latent.
    vector: w_n of each head, [N, H].
    constant: the part of the pre-activation without an input.
  """

  latent: int
  vector: Float[Array, 'N H']
  constant: Float[Array, '']

  def read_stream(
    self,
    W_V: Float[ArrayLike, 'D K H'],
    gain: Float[ArrayLike, ' D'] | None = None,
    *,
    centred: bool = False,
  ) -> Float[Array, 'N D']:
    """Directions in the residual stream, g * W_V w_n: what head n reads at a source token of weight 1.

    Multiplied by the frozen scale of the norm at the token (1/rms) and by the attention, the product with the stream is
    the contribution of that token, less those of the biases of the norm and of the values.

    Args:
      W_V: values of the layer.
      gain: scale of the norm before the attention, as it is multiplied; None without one.
      centred: whether that norm takes the mean off the stream (LayerNorm).

    Raises:
      CircuitError: shapes that do not fit.
    """
    arrays = {'W_V': (W_V, 'D K H')} | ({} if gain is None else {'gain': (gain, 'D')})
    sizes = check_arrays(arrays, {'H': self.vector.shape[1]})
    N, K = len(self.vector), sizes['K']
    if N % K:
      raise CircuitError(f'{N} query heads are not a multiple of {K} key-value heads')
    ones = jnp.ones(sizes['D'], jnp.float32) if gain is None else gain
    w, W, g = as_common(self.vector, W_V, ones)
    out_NxD = precision.einsum('kgh,dkh->kgd', w.reshape(K, N // K, -1), W).reshape(N, -1) * g
    return out_NxD - out_NxD.mean(-1, keepdims=True) if centred else out_NxD


def dfa(
  sae: Architecture,
  params: Params,
  latents: Latents,
  *,
  z: Float[ArrayLike, 'B T N H'],
  v: Float[ArrayLike, 'B S K H'],
  probs: Float[ArrayLike, 'B N T S'],
  mask: Bool[ArrayLike, 'B T'] | None = None,
  scale: float = 1.0,
  tolerance: float | None = None,
) -> FeatureAttribution:
  """Attributes pre-activations of latents to heads and source tokens.

  Args:
    sae: a dictionary that reads the site z of one layer.
    params: its parameters.
    latents: numbers of the latents.
    z, v, probs: sites 'z', 'v' and 'attn_probs' of that layer.
    mask: True at tokens, if there is padding.
    scale: number by which z was divided in training, if the parameters are not folded.
    tolerance: largest |z - sum_s A v| that is accepted, relative to sum_s A |v|; None for 1e-5, or four times the
      rounding of a number in the dtype of z if this is more.

  Raises:
    CircuitError: shapes that do not fit together, NaN, a latent that does not exist, a dictionary of another site or
      without an encoder, a traced value; or attention that is not the sum of its values.
  """
  sizes = check_arrays({'z': (z, 'B T N H'), 'v': (v, 'B S K H'), 'probs': (probs, 'B N T S')})
  N, K = sizes['N'], sizes['K']
  if N % K:
    raise CircuitError(f'{N} query heads are not a multiple of {K} key-value heads')
  if mask is not None and sizes['T'] != sizes['S']:
    raise CircuitError(
      f'a mask, and {sizes["T"]} queries for {sizes["S"]} keys', hint='pass whole texts'
    )
  real_BxT = check_mask(mask, (sizes['B'], sizes['T']))
  there_BxS = real_BxT if mask is not None else np.ones((sizes['B'], sizes['S']), bool)
  encoder_DxM, constant_M = _encoder(sae, params, latents, N * sizes['H'], scale)
  z_, v_, A, w = as_common(z, v, probs, encoder_DxM)
  z_ = jnp.where(real_BxT[..., None, None], z_, 0)
  v_ = jnp.where(there_BxS[..., None, None], v_, 0)
  A = jnp.where(real_BxT[:, None, :, None], A, 0)
  for name, x in (('z', z_), ('v', v_), ('probs', A)):
    check_finite(name, x)
  _check_sum(z_, v_, A, _tolerance(z, tolerance))
  by_head, values = _attribute(w, z_, v_)
  chosen = check_ids('latents', latents, sae.width)
  return FeatureAttribution(chosen, by_head, constant_M.astype(w.dtype), values, A, real_BxT, K)


def head_shares(
  params: Mapping[str, ArrayLike], n_heads: int, latents: Latents | None = None
) -> Float[np.ndarray, 'M N']:
  """Share of each head in the length of the decoder rows, |W_dec[i, n]| / sum_m |W_dec[i, m]| (equations 2 and 3).

  A static view of the weights: norms are not contributions.

  Args:
    params: parameters of a dictionary of the site z.
    n_heads: N.
    latents: numbers of the latents; None for all.

  Returns:
    float64 [M, N], rows of sum 1; NaN for a row of zeros.

  Raises:
    CircuitError: a width that is not a multiple of the number of heads, a transcoder, NaN.
  """
  N = check_count('n_heads', n_heads)
  _check_names(params, ('W_enc', 'W_dec'))
  W_dec = np.asarray(params['W_dec'])
  if W_dec.ndim != 2 or np.shape(params['W_enc']) != W_dec.shape[::-1]:
    raise CircuitError(
      f'W_enc {list(np.shape(params["W_enc"]))} and W_dec {list(W_dec.shape)} are not those of one autoencoder',
      cause='a transcoder, whose decoder does not write to heads, or an ensemble of dictionaries',
    )
  if W_dec.shape[1] % N:
    raise CircuitError(f'width {W_dec.shape[1]} is not a multiple of {N} heads')
  chosen = np.arange(len(W_dec)) if latents is None else check_ids('latents', latents, len(W_dec))
  rows = W_dec[chosen].astype(np.float64)
  check_finite('W_dec', rows)
  lengths_MxN = np.linalg.norm(rows.reshape(len(rows), N, -1), axis=-1)
  total = lengths_MxN.sum(1, keepdims=True)
  return np.divide(lengths_MxN, total, out=np.full_like(lengths_MxN, np.nan), where=total > 0)


def direction(
  sae: Architecture, params: Params, latent: int, n_heads: int, *, scale: float = 1.0
) -> LatentDirection:
  """The vector by which a latent reads the heads of its layer, from which a recursion starts.

  Args:
    sae, params: a dictionary of the site z.
    latent: number of the latent.
    n_heads: N.
    scale: as for `dfa`.

  Raises:
    CircuitError: a latent that does not exist, a width that is not a multiple of the number of heads, or as `dfa`.
  """
  N = check_count('n_heads', n_heads)
  if sae.d_in % N:
    raise CircuitError(f'd_in={sae.d_in} is not a multiple of {N} heads')
  if np.ndim(latent):
    raise CircuitError(f'latent={latent!r:.100} should be one whole number')
  (chosen,) = check_ids('latent', latent, sae.width)
  w, constant = _encoder(sae, params, [int(chosen)], sae.d_in, scale)
  return LatentDirection(int(chosen), w[:, 0].reshape(N, -1), constant[0])


# --- the encoder -----------------------------------------------------------------------------------------------


def _check_names(params: Mapping[str, ArrayLike], names: Sequence[str]) -> None:
  given = [*params] if isinstance(params, Mapping) else []
  if missing := [name for name in names if name not in given]:
    raise CircuitError(
      f'parameters without {missing[0]}: {given or type(params).__name__}',
      hint='sae, params = mechjax.sae.load(...)',
    )


def _encoder(
  sae: Architecture, params: Params, latents: Latents, width: int, scale: float
) -> tuple[Array, Array]:
  """Columns of W_enc and constants of some latents, in float32 or wider."""
  if not isinstance(sae, Architecture) or isinstance(sae, InferenceOnly):
    raise CircuitError(
      f'{type(sae).__name__} has no encoder whose pre-activations are linear in z',
      hint='the dictionary itself, not its pursuit',
    )
  if sae.d_in != width:
    raise CircuitError(
      f'a dictionary of width {sae.d_in} for heads of width {width} together',
      cause='a dictionary of another site: attributions to heads need one of z',
    )
  chosen = check_ids('latents', latents, sae.width)
  _check_names(params, ('W_enc', 'b_dec'))
  if scale != 1.0:
    if sae.d_out is not None:
      raise CircuitError(
        f'scale={scale} of a transcoder, whose targets have a scale as well',
        hint='sae.fold(transcoder, params, scale, target_scale)',
      )
    params = fold(sae, params, scale)
  if 'b_enc' not in params:
    sae, params = sae.as_jumprelu(params)
  shapes = {'W_enc': (sae.d_in, sae.width), 'b_enc': (sae.width,)}
  for name, shape in shapes.items():
    if np.shape(params[name]) != shape:
      raise CircuitError(
        f'{name} has shape {list(np.shape(params[name]))}, not {list(shape)}',
        cause='parameters of another dictionary, or of an ensemble of dictionaries',
      )
  w, b, b_dec = as_common(params['W_enc'][:, chosen], params['b_enc'][chosen], params['b_dec'])
  constant = b if sae.d_out is not None else b - precision.matmul(b_dec, w)
  check_finite('the encoder', w)
  check_finite('the biases', constant)
  return w, constant


# --- products --------------------------------------------------------------------------------------------------


@jax.jit
def _attribute(w_DxM: Array, z: Array, v: Array) -> tuple[Array, Array]:
  """w_n · z_n and w_n · v, [M, B, T, N] and [M, B, N, S]."""
  (N, H), K = z.shape[2:], v.shape[2]
  w = w_DxM.T.reshape(-1, N, H)
  by_head = precision.einsum('mnh,btnh->mbtn', w, z)
  values = precision.einsum('mkgh,bskh->mbkgs', w.reshape(-1, K, N // K, H), v)
  return by_head, values.reshape(len(w), len(v), N, -1)


@jax.jit
def _multiply(probs: Array, values: Array, columns: Array) -> Array:
  rows = jnp.arange(len(probs))
  return probs[rows, :, columns] * values


@jax.jit
def _take_source(probs: Array, values: Array, columns: Array, real: Array) -> Array:
  rows = jnp.arange(len(probs))
  A_BxNxT, w_BxMxN = probs[rows, :, :, columns], values[:, rows, :, columns]
  found = precision.einsum('bnt,bmn->mbtn', A_BxNxT, w_BxMxN)
  return jnp.where(real[None, :, :, None], found, 0)


# --- checks ----------------------------------------------------------------------------------------------------


def _tolerance(z: Float[ArrayLike, ' ...'], tolerance: float | None) -> float:
  dtype = jnp.asarray(z).dtype
  return max(1e-5, 4 * float(jnp.finfo(dtype).eps)) if tolerance is None else tolerance


@jax.jit
def _measure_gap(z: Array, v: Array, probs: Array) -> tuple[Array, Array]:
  """|z - sum_s A v| and sum_s A |v|, the largest of each head, [B, T, N]."""
  (B, N, T, S), K = probs.shape, v.shape[2]
  A = probs.reshape(B, K, N // K, T, S)
  mix = lambda x: precision.einsum('bkgts,bskh->btkgh', A, x).reshape(z.shape)  # noqa: E731
  return jnp.abs(z - mix(v)).max(-1), mix(jnp.abs(v)).max(-1)


def _check_sum(z: Array, v: Array, probs: Array, tolerance: float) -> None:
  """Raises CircuitError unless z is the sum of the values under the attention pattern."""
  gap, size = (np.asarray(x, np.float64) for x in _measure_gap(z, v, probs))
  ratio = gap / np.maximum(size, np.finfo(np.float32).tiny)
  if ratio.max() > tolerance:
    b, t, n = (int(i) for i in np.unravel_index(ratio.argmax(), ratio.shape))
    raise CircuitError(
      f'z differs from sum_s A v by {ratio.max():.3g} of its size, more than {tolerance:.3g}',
      where=f'row {b}, position {t}, head {n}',
      cause='a gate after the sum (Qwen3-Next), sites of two layers or runs, a planted value, or columns of padding '
      'without their mask',
      hint='attribute by head alone with w_n · z_n: its sources are not known from v',
    )
