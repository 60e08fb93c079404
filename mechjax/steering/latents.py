"""Steering vectors made of a dictionary's latents: single ones, reconstructions of prompts, selected differences.

A prompt's difference vector contains everything in which two prompts differ. A dictionary splits it into parts, so that
a vector can be made of some of them:

    of_latents                  sum of f_i(h) d_i over chosen latents, at each position of one prompt
    reconstruction_difference   decode(encode(h+)) - decode(encode(h-)): biases and common errors cancel
    select_pairs              of each position the k largest latents of either prompt, with coefficients f+ - f-

All return [T, D] in float64: a vector for each position, of which V[p] is one. Nuisance parts, such as latents for
padding, are removed with `bases.remove(V, orthonormal_basis(rows))`, never one after the other.

Sharp edges: a row d_i has length 1, and its activation brings the length of the stream: coefficients of these vectors
are multiples of the activations on the prompt. Parameters must be for unnormalised activations (`sae.fold`).

Letters: T positions, D model width, M latents.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax.errors import SteeringError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.provenance import check_provenance
from mechjax.steering.checks import check_finite, check_pair
from mechjax.steering.clamping import check_autoencoder, check_latents


def of_latents(
  sae: Architecture,
  params: Params,
  acts_TxD: Float[Array | np.ndarray, 'T D'],
  latents: Sequence[int] | Int[np.ndarray, ' k'],
  *,
  site: str | None = None,
) -> Float[np.ndarray, 'T D']:
  """Sum of f_i d_i over some latents, at each position of a steering prompt.

  Args:
    sae: an autoencoder of the site.
    params: its parameters.
    acts_TxD: activations of the prompt.
    latents: numbers of the latents.
    site: the site of the activations, compared with the files of the dictionary; None to compare nothing.

  Raises:
    SteeringError: a transcoder, a latent that does not exist, or none of them active on the prompt.
    SAEError: the files of the dictionary name another site.
  """
  check_provenance(sae, site)
  check_latents(sae, latents)
  chosen = np.unique(np.asarray(latents))
  f_TxM = _encode(sae, params, acts_TxD)[:, chosen]
  if not f_TxM.any():
    raise SteeringError(
      f'none of the latents {chosen.tolist()} is active on the prompt, so that the vector is zero',
      hint='a prompt on which they are active',
    )
  return f_TxM @ _decoder(params)[chosen]


def reconstruction_difference(
  sae: Architecture,
  params: Params,
  plus_TxD: Float[Array | np.ndarray, 'T D'],
  minus_TxD: Float[Array | np.ndarray, 'T D'],
  *,
  site: str | None = None,
) -> Float[np.ndarray, 'T D']:
  """Difference of the reconstructions of two prompts, in which b_dec cancels.

  Args:
    sae: an autoencoder of the site.
    params: its parameters.
    plus_TxD, minus_TxD: activations of the two prompts of a `Pair`.
    site: the site of the activations, compared with the files of the dictionary; None to compare nothing.

  Raises:
    SteeringError: a transcoder, two shapes, or numbers that are not finite.
    SAEError: the files of the dictionary name another site.
  """
  check_provenance(sae, site)
  return _coefficients(sae, params, plus_TxD, minus_TxD)[0] @ _decoder(params)


def select_pairs(
  sae: Architecture,
  params: Params,
  plus_TxD: Float[Array | np.ndarray, 'T D'],
  minus_TxD: Float[Array | np.ndarray, 'T D'],
  k: int = 10,
  *,
  site: str | None = None,
) -> Float[np.ndarray, 'T D']:
  """Difference of two prompts in the largest latents of each position.

  At each position the latents are the `k` largest active ones of either prompt, 2k at most, and the coefficient of each
  is f+ - f-, also where only the negative prompt activates it. Latents that are not active are not chosen, even if
  fewer than `k` are active; of equal ones the first counts.

  Args:
    sae: an autoencoder of the site.
    params: its parameters.
    plus_TxD, minus_TxD: activations of the two prompts of a `Pair`.
    k: number of latents of each prompt and position.
    site: the site of the activations, compared with the files of the dictionary; None to compare nothing.

  Raises:
    SteeringError: a transcoder, two shapes, numbers that are not finite, or a `k` that is not from 1 to M.
    SAEError: the files of the dictionary name another site.
  """
  check_provenance(sae, site)
  delta_TxM, plus_TxM, minus_TxM = _coefficients(sae, params, plus_TxD, minus_TxD)
  try:
    n = 0 if isinstance(k, bool) else operator.index(k)
  except TypeError:
    n = 0
  if not 1 <= n <= sae.width:
    raise SteeringError(f'k={k!r}; expected a number of latents, from 1 to {sae.width}')
  kept_TxM = _mark_largest(plus_TxM, n) | _mark_largest(minus_TxM, n)
  return np.where(kept_TxM, delta_TxM, 0) @ _decoder(params)


def _coefficients(
  sae: Architecture,
  params: Params,
  plus_TxD: Float[Array | np.ndarray, 'T D'],
  minus_TxD: Float[Array | np.ndarray, 'T D'],
) -> tuple[Float[np.ndarray, 'T M'], ...]:
  """f+ - f-, f+ and f-."""
  check_pair(plus_TxD, minus_TxD, 2, '[T, D]')
  plus, minus = (_encode(sae, params, x) for x in (plus_TxD, minus_TxD))
  return plus - minus, plus, minus


def _mark_largest(f_TxM: Float[np.ndarray, 'T M'], k: int) -> np.ndarray:
  order = np.argsort(-f_TxM, axis=1, kind='stable')[:, :k]
  marked = np.zeros(f_TxM.shape, bool)
  np.put_along_axis(marked, order, True, 1)
  return marked & (f_TxM > 0)


def _encode(
  sae: Architecture, params: Params, acts_TxD: Float[Array | np.ndarray, 'T D']
) -> Float[np.ndarray, 'T M']:
  """Latents of activations [T, D], in float64 on the host."""
  check_autoencoder(sae)
  if np.ndim(acts_TxD) != 2 or np.shape(acts_TxD)[1] != sae.d_in:
    raise SteeringError(
      f'activations of shape {np.shape(acts_TxD)} for a dictionary of width {sae.d_in}; expected [T, D]',
      hint='acts[0] is the first row of a batch',
    )
  check_finite('the activations', acts_TxD)
  x = jnp.asarray(acts_TxD).astype(jnp.asarray(params['W_enc']).dtype)
  return np.asarray(sae.encode(params, x), np.float64)


def _decoder(params: Params) -> Float[np.ndarray, 'M D']:
  return np.asarray(params['W_dec'], np.float64)
