"""Where one publisher's dictionary differs from another's, and is the same function.

All store two matrices and some vectors; they differ in what the encoder sees and in what the data had been divided
by. Both are absorbed by vectors, so a reader is a table of names and one of these functions.

What the encoder sees. Ours sees x - b_dec, Gemma Scope's sees x. With b standing for any bias of the encoder,

    (x - b_dec) @ W_enc + b  =  x @ W_enc + (b - b_dec @ W_enc)                       `uncentre`, `centre`

What the data had been divided by. A dictionary trained on x / C is one for x itself when its latents are multiplied
by C too (`fold`; docs/methods.md, section 4.8; Lieberum et al. 2024):

    b' = C b        b_dec' = C b_dec        theta' = C theta        matrices as they were

and in a transcoder, trained on x / C and y / E, latents are multiplied by E, so that the decoder stays as it is:

    W_enc' = W_enc E / C      W_skip' = W_skip E / C      b' = E b      b_dec' = E b_dec      theta' = E theta

Sharp edges: what comes out of a file is float32, whatever it was stored in, and files are written in float32. The
thresholds of a JumpReLU are kept as logarithms, so one that comes from a file is right to seven digits. A threshold
below 0 acts like one of 0, because all that is published applies a ReLU as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mechjax.errors import SAEError, WeightsError
from mechjax.sae.architectures import Architecture, JumpReLU, Params

Arrays = dict[str, np.ndarray]
BIASES = ('b_enc', 'b_gate', 'b_mag')
"""Vectors that are added to what the encoder gives."""
_AT_A_TIME = 1 << 17  # numbers in double precision


def fold(
  sae: Architecture, params: Params, scale: float, target_scale: float | None = None
) -> Params:
  """The dictionary for activations as they are, from one trained on normalised ones.

  Args:
    sae: the dictionary.
    params: trained on x / scale.
    scale: what activations were divided by, C.
    target_scale: what the targets of a transcoder were divided by, E; None for an autoencoder.

  Returns:
    Parameters with which encode(x) is E times (an autoencoder: C times) the latents of x / C, and whose
    reconstruction is that of x.

  Raises:
    SAEError: a scale that is not positive; a target scale for an autoencoder, or none for a transcoder.
  """
  if (target_scale is None) != (sae.d_out is None):
    raise SAEError(
      f'target_scale={target_scale} for a dictionary with d_out={sae.d_out}',
      hint='give the scale of the targets of a transcoder, and of nothing else',
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
  """Biases for an encoder that sees x - b_dec, from those of one that sees x."""
  return _move_b_dec(arrays, 1.0)


def uncentre(arrays: Arrays) -> Arrays:
  """Biases for an encoder that sees x, from those of one that sees x - b_dec."""
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
  """The same reconstructions with decoder rows of length one: latents with a ReLU take over the length.

  What ranks latents by activation times length ranks the new ones by activation.
  """
  length_M = np.linalg.norm(arrays['W_dec'].astype(np.float64), axis=1)
  length_M = np.where(length_M > 0, length_M, 1).astype(np.float32)
  new = {name: arrays[name] * length_M for name in ('W_enc', 'b_enc')}
  return arrays | new | {'W_dec': arrays['W_dec'] / length_M[:, None]}


def jumprelu(arrays: Arrays) -> Params:
  """Parameters of a JumpReLU, from arrays with its `threshold`; where that is 0 a latent is a ReLU."""
  threshold_M = arrays['threshold'].astype(np.float64)
  with np.errstate(divide='ignore'):
    log_threshold = np.log(np.maximum(threshold_M, 0)).astype(np.float32)
  rest = {name: value for name, value in arrays.items() if name != 'threshold'}
  return on_device(rest | {'log_threshold': log_threshold})


def thresholds(sae: Architecture, params: Params) -> tuple[JumpReLU, Arrays]:
  """Any dictionary that has thresholds, as files keep it: `threshold` instead of its logarithm.

  Raises:
    SAEError: it chooses its latents by rank.
  """
  jumprelu, new = sae.as_jumprelu(params)
  assert isinstance(jumprelu, JumpReLU)
  arrays = on_host(new)
  log_threshold = arrays.pop('log_threshold').astype(np.float64)
  return jumprelu, arrays | {'threshold': np.exp(log_threshold).astype(np.float32)}


def check_arrays(
  path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> Arrays:
  """Arrays of a file, float32, after they have been held against what should be there.

  One threshold for all latents becomes one for each.

  Args:
    path: of the file.
    arrays: by name.
    shapes: of all that should be there.

  Raises:
    WeightsError: another set of names, another shape, integers, NaN or infinity.
  """
  if set(arrays) != set(shapes):
    raise WeightsError(
      f'{path} holds the tensors {sorted(arrays)}, not {sorted(shapes)}',
      cause='another architecture than its config says, or a setting that mechjax does not know',
    )
  result: Arrays = {}
  for name, shape in shapes.items():
    found = arrays[name]
    if name == 'threshold' and len(shape) == 1 and found.size == 1:
      found = np.broadcast_to(found.reshape(()), shape)
    if found.shape != shape or not (found.dtype.kind == 'f' or found.dtype == ml_dtypes.bfloat16):
      raise WeightsError(f'{path}: {name} is {found.dtype} {found.shape}, not {shape} of numbers')
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
    WeightsError: they are not there, or are not two matrices that fit.
  """
  if not {W_enc, W_dec} <= set(arrays):
    raise WeightsError(
      f'{path} holds {sorted(arrays)}, and neither dictionary is without {W_enc} and {W_dec}'
    )
  enc, dec = arrays[W_enc].shape, arrays[W_dec].shape
  if len(enc) != 2 or len(dec) != 2 or enc[1] != dec[0]:
    raise WeightsError(
      f'{path}: {W_enc} {enc} and {W_dec} {dec} are not an encoder [D, M] and a decoder [M, E]',
      cause='a dictionary across several layers, or a damaged file',
    )
  return enc[0], enc[1], dec[1]


def drop_unit_scaling(path: Path, arrays: Arrays) -> Arrays:
  """The arrays without `scaling_factor`, with which some older files say that latents are not rescaled.

  Raises:
    WeightsError: they are.
  """
  factor = arrays.get('scaling_factor', np.ones(1))
  if not np.array_equal(factor, np.ones_like(factor)):
    raise WeightsError(
      f'{path}: latents are rescaled by a scaling_factor, which mechjax has no place for',
      hint='multiply the rows of W_dec by it',
    )
  return {name: value for name, value in arrays.items() if name != 'scaling_factor'}


def on_host(params: Params) -> Arrays:
  """Parameters as float32 of NumPy."""
  with np.errstate(over='ignore'):  # what is not finite is refused where it is written
    return {name: np.asarray(value).astype(np.float32) for name, value in params.items()}


def check_parameters(sae: Architecture, params: Params) -> None:
  """Checks that parameters are those of a dictionary, before they are written.

  Raises:
    SAEError: another set of names, another shape, NaN, infinity, or numbers too large for float32.
  """
  wanted = {name: a.shape for name, a in jax.eval_shape(sae.init, jax.random.key(0)).items()}
  found = {name: np.shape(value) for name, value in params.items()}
  if found != wanted:
    differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    raise SAEError(
      f'parameters {[(n, found.get(n)) for n in differ]} for a dictionary that has '
      f'{[(n, wanted.get(n)) for n in differ]}',
      cause='the parameters of another description, or an ensemble of dictionaries',
    )
  # A threshold of 0 is one of -inf here.
  arrays = on_host(params)
  with np.errstate(over='ignore'):
    check_finite({n: np.exp(v) if n == 'log_threshold' else v for n, v in arrays.items()})


def check_finite(arrays: Arrays) -> Arrays:
  """The arrays, which a file is to hold.

  Raises:
    SAEError: NaN, infinity, or numbers too large for float32.
  """
  for name, value in arrays.items():
    if not _finite(value):
      raise SAEError(
        f'{name} holds NaN or infinity, or numbers too large for float32, which no file is written of',
        cause='a run that diverged, or a b_dec so large that it cannot be moved into the biases',
      )
  return arrays


def on_device(arrays: Arrays) -> Params:
  """Parameters as arrays of JAX: those that nobody else holds as they are, and copies of a file's pages.

  Raises:
    WeightsError: a number became too large for float32 on the way from the file's convention to ours.
  """
  for name, value in arrays.items():
    if name != 'log_threshold' and not _finite(value):
      raise WeightsError(
        f'{name} holds numbers that are too large for float32, once b_dec or the length of rows is moved into it',
        cause='a run that diverged, or a damaged file',
      )
  return {n: jax.device_put(v) if v.flags.writeable else jnp.array(v) for n, v in arrays.items()}


def _finite(array: np.ndarray) -> bool:
  """Whether all numbers are finite; NaN goes through a minimum, and nothing is allocated."""
  return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))
