"""Latents in units of their thresholds: dictionaries of different layers on one scale, so that they can be compared.

A latent that is multiplied by s while its decoder row is divided by s is the same latent. Distances between parameters
of two dictionaries depend on this choice, and thresholds remove it: in units of its threshold every latent becomes
active at 1 (Balagansky et al. 2024, arXiv 2410.07656, "parameter folding"),

    W_enc' = W_enc / theta      b_enc' = b_enc / theta      W_dec' = theta W_dec      theta' = 1

    jump, folded = fold_thresholds(sae, params)        f' = f / theta, and the same reconstruction
    jump, scaled = rescale_latents(sae, params, mean_activation)               any other positive units

Folding the same dictionary with any other lengths of its rows gives the same folded dictionary.

Sharp edges: a ReLU has thresholds of 0 and cannot be folded; `rescale_latents` takes another scale, such as the mean
activation of each latent. A TopK ranks its latents, and units would change the ranks; match it as it is. Thresholds
near 0 give encoder columns that are large, and these dominate a distance.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.architectures import Architecture, JumpReLU, Params


def fold_thresholds(sae: Architecture, params: Params) -> tuple[JumpReLU, Params]:
  """Expresses every latent in units of its threshold.

  Args:
    sae: a dictionary whose latents have thresholds: JumpReLU, Gated or BatchTopK.
    params: its parameters.

  Returns:
    An equivalent JumpReLU with thresholds of 1, and its parameters; its latents are those of `sae` over the threshold.

  Raises:
    SAEError: the dictionary selects latents by rank; a threshold is 0 or NaN, or as for `rescale_latents`.
  """
  jump, own = _as_jumprelu(sae, params)
  theta = np.exp(np.asarray(own['log_threshold'], np.float64))
  if np.isnan(theta).any():
    raise SAEError(
      f'the threshold of latent {np.flatnonzero(np.isnan(theta))[0]} is NaN',
      cause='a training that diverged, or a file that is damaged',
    )
  zero = np.flatnonzero(theta == 0)
  if zero.size:
    raise SAEError(
      f'{zero.size} of {theta.size} latents have a threshold of 0, the first is {zero[0]}',
      cause='a ReLU, a BatchTopK that was not trained, or latents of a Gated that are always open',
      hint='rescale_latents(sae, params, scale) with the mean activation of each latent',
    )
  jump, new = rescale_latents(sae, params, theta)
  return jump, new | {'log_threshold': jnp.zeros_like(new['log_threshold'])}


def rescale_latents(
  sae: Architecture, params: Params, scale: Float[np.ndarray | Array, ' M']
) -> tuple[JumpReLU, Params]:
  """Expresses every latent in given units.

  Args:
    sae: a dictionary whose latents have thresholds, which may be 0.
    params: its parameters.
    scale: the unit of each latent, positive.

  Returns:
    An equivalent JumpReLU, and its parameters; its latents are those of `sae` over the scale.

  Raises:
    SAEError: the dictionary selects latents by rank; a scale is not positive and finite, or so small or large that the
      parameters would leave the range of their dtype.
  """
  jump, own = _as_jumprelu(sae, params)
  dtype = own['W_enc'].dtype
  units = as_host('scale', scale, SAEError).astype(np.float64)
  _check_units(units, sae.width, dtype)
  scale_M = jnp.asarray(units, dtype)
  new = {
    'W_enc': own['W_enc'] / scale_M,
    'b_enc': own['b_enc'] / scale_M,
    'W_dec': own['W_dec'] * scale_M[:, None],
    'log_threshold': own['log_threshold'] - jnp.asarray(np.log(units), dtype),
  }
  for name in ('W_enc', 'b_enc', 'W_dec'):
    if not np.isfinite(np.asarray(new[name])).all() and np.isfinite(np.asarray(own[name])).all():
      raise SAEError(
        f'{name} in units from {units.min():.3g} to {units.max():.3g} exceeds the range of {dtype}'
      )
  return jump, own | new


def _check_units(units: Float[np.ndarray, ' M'], width: int, dtype: np.dtype) -> None:
  """Raises SAEError unless there is a positive, finite unit for each latent by which parameters can be divided."""
  if units.shape != (width,):
    raise SAEError(f'a scale of shape {list(units.shape)} for {width} latents')
  # Quotients and products of ordinary parameters by it then stay normal numbers.
  least = float(jnp.finfo(dtype).tiny) ** 0.5
  bad = np.flatnonzero(~(np.isfinite(units) & (units >= least)))
  if bad.size:
    raise SAEError(
      f'the scale or threshold of {bad.size} of {width} latents is out of range, the first {units[bad[0]]:.3g} of '
      f'latent {bad[0]}',
      cause=f'expected finite numbers of at least {least:.2g}, which {dtype} parameters can be divided by',
      hint='rescale_latents(sae, params, scale) with the mean activation of each latent',
    )


def _as_jumprelu(sae: Architecture, params: Params) -> tuple[JumpReLU, Params]:
  jump, own = sae.as_jumprelu(params)
  assert isinstance(jump, JumpReLU)
  return jump, own
