"""Conventions in which published dictionaries differ without being different functions.

All formats store two matrices and some vectors; they differ in the input of the encoder and in the normalisation of the
data. Vectors absorb both differences, so a reader is a table of names and one of these functions.

Input of the encoder. Ours takes x - b_dec, Gemma Scope's takes x. For any bias b of the encoder,

    (x - b_dec) @ W_enc + b  =  x @ W_enc + (b - b_dec @ W_enc)                       `uncentre`, `centre`

Normalisation of the data. A dictionary trained on x / C becomes one for x if its latents are multiplied by C too
(`fold`; docs/methods.md, section 4.8; Lieberum et al. 2024):

    b' = C b        b_dec' = C b_dec        theta' = C theta        the matrices are unchanged

and in a transcoder, trained on x / C and y / E, latents are multiplied by E, so that the decoder is unchanged:

    W_enc' = W_enc E / C      W_skip' = W_skip E / C      b' = E b      b_dec' = E b_dec      theta' = E theta

In a cross-layer transcoder, trained on x^l / C_l and y^l / E_l, latents of layer l are multiplied by E_l, so that the
directions to the target of their own layer are unchanged:

    W_enc^l' = W_enc^l E_l / C_l      W_dec^{l->t}' = W_dec^{l->t} E_t / E_l      biases and thresholds times E_l

In a crosscoder, trained on x^s / C_s side by side, latents are those of the scaled activations, so that no part is
preferred, and the lengths of directions change:

    W_enc^s' = W_enc^s / C_s      W_dec^s' = W_dec^s C_s      b_dec^s' = b_dec^s C_s      b_enc' = b_enc
    theta_i' = theta_i sum_s C_s |d_i^s| / sum_s |d_i^s|      a threshold of activations times lengths (BatchTopK)

Sharp edges: arrays are converted to float32 when they are read, whatever their dtype in the file, and are written in
float32. The thresholds of a JumpReLU are stored as logarithms, so a threshold from a file is accurate to seven digits.
A threshold below 0 acts like one of 0, because all published dictionaries also apply a ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mechjax.errors import SAEError, WeightsError
from mechjax.sae.architectures import Architecture, CrossLayer, JumpReLU, Params
from mechjax.sae.architectures.crosscoder_parts import part_lengths

Arrays = dict[str, np.ndarray]
BIASES = ('b_enc', 'b_gate', 'b_mag')
"""Vectors that are added to the output of the encoder."""
_AT_A_TIME = 1 << 17  # numbers in double precision


def fold(
  sae: Architecture,
  params: Params,
  scale: float | Sequence[float],
  target_scale: float | Sequence[float] | None = None,
) -> Params:
  """Converts parameters trained on normalised activations to parameters for unnormalised ones.

  Args:
    sae: the dictionary.
    params: parameters trained on x / scale.
    scale: normalisation constant of the activations, C; one for each layer of a cross-layer transcoder, or each part of
      a crosscoder.
    target_scale: normalisation constant of a transcoder's targets, E, or one for each layer; None for an autoencoder.

  Returns:
    Parameters for which encode(x) is E times (for an autoencoder C times, for a crosscoder once) the latents of x / C,
    and which reconstruct the unnormalised target.

  Raises:
    SAEError: a scale is not positive; an autoencoder has a target scale, or a transcoder does not have one; the
      numbers of scales and of layers or parts differ.
  """
  if isinstance(sae, CrossLayer):
    return _fold_layers(sae, params, scale, target_scale)
  if sae.is_crosscoder:
    return _fold_parts(sae, params, scale, target_scale)
  if isinstance(scale, Sequence) or isinstance(target_scale, Sequence):
    raise SAEError(f'scales {scale} and {target_scale} for a dictionary of one site')
  return _fold(sae, params, scale, target_scale)


def _fold_layers(
  sae: CrossLayer,
  params: Params,
  scale: float | Sequence[float],
  target_scale: float | Sequence[float] | None,
) -> Params:
  C, E = (np.asarray([] if s is None else s, np.float64) for s in (scale, target_scale))
  if C.shape != (sae.n_layers,) or E.shape != C.shape:
    raise SAEError(
      f'scales {scale} and {target_scale} for a cross-layer transcoder with {sae.n_layers} layers',
      hint='one scale and one target_scale for each layer',
    )
  if not (np.isfinite([C, E]).all() and (np.minimum(C, E) > 0).all()):
    raise SAEError(f'scales of {scale} and {target_scale} are not positive')
  factors = {'W_enc': (E / C)[:, None, None], 'W_skip': (E / C)[:, None, None]}
  factors |= dict.fromkeys(('b_enc', 'b_dec'), E[:, None])
  factors |= {f'W_dec_{n}': (E[n:] / E[n])[None, :, None] for n in range(sae.n_layers)}
  new = {
    name: value * factors[name].astype(np.float32) if name in factors else value
    for name, value in params.items()
  }
  if 'log_threshold' in new:
    new['log_threshold'] = new['log_threshold'] + np.log(E)[:, None].astype(np.float32)
  return new


def _fold_parts(
  sae: Architecture,
  params: Params,
  scale: float | Sequence[float],
  target_scale: float | Sequence[float] | None,
) -> Params:
  C = np.asarray(scale, np.float64)
  if C.shape != (len(sae.parts),) or target_scale is not None:
    raise SAEError(
      f'scales {scale} and {target_scale} for a crosscoder with parts={sae.parts}',
      hint='one scale for each part, and no target_scale',
    )
  if not (np.isfinite(C).all() and (C > 0).all()):
    raise SAEError(f'scales of {scale} are not positive')
  C_D = np.repeat(C, sae.parts)
  factors = {'W_enc': 1 / C_D[:, None], 'W_dec': C_D, 'b_dec': C_D}
  new = dict(params) | {name: params[name] * f.astype(np.float32) for name, f in factors.items()}
  if 'threshold' in params:
    before, after = (jnp.sum(part_lengths(p['W_dec'], sae.parts), 0) for p in (params, new))
    ratio = jnp.where(before > 0, after / jnp.where(before > 0, before, 1), 1)
    new['threshold'] = params['threshold'] * ratio
  return new


def _fold(sae: Architecture, params: Params, scale: float, target_scale: float | None) -> Params:
  if (target_scale is None) != (sae.d_out is None):
    raise SAEError(
      f'target_scale={target_scale} for a dictionary with d_out={sae.d_out}',
      hint='give target_scale for a transcoder, and only for a transcoder',
    )
  latents = scale if target_scale is None else target_scale
  if not (0 < scale < np.inf and 0 < latents < np.inf):
    raise SAEError(f'scales of {scale} and {target_scale} are not positive')
  factors = dict.fromkeys((*BIASES, 'b_dec', 'threshold'), latents)
  factors |= dict.fromkeys(('W_enc', 'W_skip'), latents / scale)
  new = {
    name: value * factors[name] if name in factors else value for name, value in params.items()
  }
  if 'log_threshold' in new:
    new['log_threshold'] = new['log_threshold'] + float(np.log(latents))
  return new


def centre(arrays: Arrays) -> Arrays:
  """Converts biases of an encoder of x to those of an encoder of x - b_dec."""
  return _move_b_dec(arrays, 1.0)


def uncentre(arrays: Arrays) -> Arrays:
  """Converts biases of an encoder of x - b_dec to those of an encoder of x."""
  return _move_b_dec(arrays, -1.0)


def _move_b_dec(arrays: Arrays, sign: float) -> Arrays:
  W_enc, b_dec = arrays['W_enc'], arrays['b_dec'].astype(np.float64)
  # A copy of the whole matrix in double precision would be the largest array.
  rows = max(1, _AT_A_TIME // W_enc.shape[1])
  cuts = range(0, len(W_enc), rows)
  shift_M = sign * sum(b_dec[i : i + rows] @ W_enc[i : i + rows].astype(np.float64) for i in cuts)
  new = dict(arrays)
  for name in set(BIASES) & set(arrays):
    magnitude = np.exp(arrays['r_mag'].astype(np.float64)) if name == 'b_mag' else 1.0
    with np.errstate(over='ignore'):
      new[name] = (arrays[name] + magnitude * shift_M).astype(np.float32)
  return new


def normalise_rows(arrays: Arrays) -> Arrays:
  """Scales decoder rows to length one; latents with a ReLU absorb the length, and reconstructions stay the same.

  Ranking latents by activation times length becomes ranking them by activation.
  """
  length_M = np.linalg.norm(arrays['W_dec'].astype(np.float64), axis=1)
  length_M = np.where(length_M > 0, length_M, 1).astype(np.float32)
  new = {name: arrays[name] * length_M for name in ('W_enc', 'b_enc')}
  return arrays | new | {'W_dec': arrays['W_dec'] / length_M[:, None]}


def jumprelu(arrays: Arrays) -> Params:
  """Parameters of a JumpReLU, from arrays with its `threshold`; a latent whose threshold is 0 is a ReLU."""
  threshold_M = arrays['threshold'].astype(np.float64)
  with np.errstate(divide='ignore'):
    log_threshold = np.log(np.maximum(threshold_M, 0)).astype(np.float32)
  rest = {name: value for name, value in arrays.items() if name != 'threshold'}
  return on_device(rest | {'log_threshold': log_threshold})


def thresholds(sae: Architecture, params: Params) -> tuple[JumpReLU, Arrays]:
  """Converts a dictionary with thresholds to arrays for a file, with `threshold` instead of its logarithm.

  Raises:
    SAEError: the dictionary selects its latents by rank.
  """
  jumprelu, new = sae.as_jumprelu(params)
  assert isinstance(jumprelu, JumpReLU)
  arrays = on_host(new)
  log_threshold = arrays.pop('log_threshold').astype(np.float64)
  return jumprelu, arrays | {'threshold': np.exp(log_threshold).astype(np.float32)}


def check_arrays(
  path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> Arrays:
  """Checks arrays of a file against the expected shapes, and converts them to float32.

  One threshold for all latents becomes one threshold for each.

  Args:
    path: path of the file.
    arrays: arrays by name.
    shapes: expected shapes by name.

  Raises:
    WeightsError: the names or a shape differ, or an array holds integers, NaN or infinity.
  """
  if set(arrays) != set(shapes):
    raise WeightsError(
      f'{path} holds the tensors {sorted(arrays)}, not {sorted(shapes)}',
      cause='the architecture is not the one in the config, or a setting that mechjax does not know',
    )
  result: Arrays = {}
  for name, shape in shapes.items():
    found = arrays[name]
    if name == 'threshold' and len(shape) == 1 and found.size == 1:
      found = np.broadcast_to(found.reshape(()), shape)
    if found.shape != shape or not (found.dtype.kind == 'f' or found.dtype == ml_dtypes.bfloat16):
      raise WeightsError(
        f'{path}: {name} is {found.dtype} {found.shape}, not floats of shape {shape}'
      )
    with np.errstate(over='ignore'):
      result[name] = np.ascontiguousarray(found, np.float32)
    if not _finite(result[name]):
      raise WeightsError(
        f'{path}: {name} holds NaN or infinity, or numbers too large for float32',
        cause='a run that diverged, or a damaged file',
      )
  return result


def sizes(
  path: Path, arrays: Mapping[str, np.ndarray], W_enc: str, W_dec: str
) -> tuple[int, int, int]:
  """D, M and E, from the shapes of the encoder [D, M] and the decoder [M, E].

  Raises:
    WeightsError: they are missing, or are not two matrices that fit each other.
  """
  if not {W_enc, W_dec} <= set(arrays):
    raise WeightsError(f'{path} holds {sorted(arrays)}, and a dictionary needs {W_enc} and {W_dec}')
  enc, dec = arrays[W_enc].shape, arrays[W_dec].shape
  if len(enc) != 2 or len(dec) != 2 or enc[1] != dec[0]:
    raise WeightsError(
      f'{path}: {W_enc} {enc} and {W_dec} {dec} are not an encoder [D, M] and a decoder [M, E]',
      cause='a dictionary across several layers, or a damaged file',
    )
  return enc[0], enc[1], dec[1]


def drop_unit_scaling(path: Path, arrays: Arrays) -> Arrays:
  """Drops `scaling_factor`, which is one in some older files: latents are not rescaled.

  Raises:
    WeightsError: it is not one.
  """
  factor = arrays.get('scaling_factor', np.ones(1))
  if not np.array_equal(factor, np.ones_like(factor)):
    raise WeightsError(
      f'{path}: latents are rescaled by a scaling_factor, which mechjax does not support',
      hint='multiply the rows of W_dec by it',
    )
  return {name: value for name, value in arrays.items() if name != 'scaling_factor'}


def on_host(params: Params) -> Arrays:
  """Parameters as NumPy arrays in float32."""
  with np.errstate(over='ignore'):  # infinities are refused before they are written
    return {name: np.asarray(value).astype(np.float32) for name, value in params.items()}


def check_parameters(sae: Architecture, params: Params) -> None:
  """Checks that parameters are those of a dictionary, before they are written.

  Raises:
    SAEError: the names or a shape differ, or a parameter holds NaN, infinity, or numbers too large for float32.
  """
  wanted = {name: a.shape for name, a in jax.eval_shape(sae.init, jax.random.key(0)).items()}
  found = {name: np.shape(value) for name, value in params.items()}
  if found != wanted:
    differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    raise SAEError(
      f'parameters {[(n, found.get(n)) for n in differ]} for a dictionary that has '
      f'{[(n, wanted.get(n)) for n in differ]}',
      cause='parameters of another architecture, or of an ensemble of dictionaries',
    )
  # A threshold of 0 has the logarithm -inf.
  arrays = on_host(params)
  with np.errstate(over='ignore'):
    check_finite({n: np.exp(v) if n == 'log_threshold' else v for n, v in arrays.items()})


def check_finite(arrays: Arrays) -> Arrays:
  """Checks that all arrays for a file are finite, and returns them.

  Raises:
    SAEError: an array holds NaN, infinity, or numbers too large for float32.
  """
  for name, value in arrays.items():
    if not _finite(value):
      raise SAEError(
        f'{name} holds NaN or infinity, or numbers too large for float32, which are not written to a file',
        cause='a run that diverged, or a b_dec so large that it cannot be moved into the biases',
      )
  return arrays


def on_device(arrays: Arrays) -> Params:
  """Parameters as JAX arrays; read-only pages of a file are copied, other arrays are moved as they are.

  Raises:
    WeightsError: a number became too large for float32 in the conversion from the file's convention to ours.
  """
  for name, value in arrays.items():
    if name != 'log_threshold' and not _finite(value):
      raise WeightsError(
        f'{name} holds numbers that are too large for float32 after b_dec or the length of rows is moved into it',
        cause='a run that diverged, or a damaged file',
      )
  return {n: jax.device_put(v) if v.flags.writeable else jnp.array(v) for n, v in arrays.items()}


def _finite(array: np.ndarray) -> bool:
  """Whether all numbers are finite; a minimum propagates NaN, and nothing is allocated."""
  return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))
