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
    SAEError: the dictionary selects latents by rank, or a threshold is 0.
  """
  jump, own = _as_jumprelu(sae, params)
  theta = np.exp(np.asarray(own['log_threshold'], np.float64))
  zero = np.flatnonzero(~(theta > 0))
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
    SAEError: the dictionary selects latents by rank, or a scale is not positive and finite.
  """
  jump, own = _as_jumprelu(sae, params)
  units = as_host('scale', scale, SAEError).astype(np.float64)
  if units.shape != (sae.width,) or not (np.isfinite(units) & (units > 0)).all():
    raise SAEError(
      f'a scale of shape {list(units.shape)} for {sae.width} latents',
      cause='expected a positive, finite number for each latent',
    )
  dtype = own['W_enc'].dtype
  scale_M = jnp.asarray(units, dtype)
  new = {
    'W_enc': own['W_enc'] / scale_M,
    'b_enc': own['b_enc'] / scale_M,
    'W_dec': own['W_dec'] * scale_M[:, None],
    'log_threshold': own['log_threshold'] - jnp.asarray(np.log(units), dtype),
  }
  return jump, own | new


def _as_jumprelu(sae: Architecture, params: Params) -> tuple[JumpReLU, Params]:
  jump, own = sae.as_jumprelu(params)
  assert isinstance(jump, JumpReLU)
  return jump, own
