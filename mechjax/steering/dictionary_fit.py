"""Tests whether a dictionary can describe a steering vector: its length, the bias, and projections below zero.

The latents of a steering vector are often read as its meaning. An encoder was trained on activations, though, and a
steering vector is a difference of them (Mayne et al. 2024, "Can sparse autoencoders be used to decompose and interpret
steering vectors?", arXiv 2411.08790). Two causes make its latents misleading, and each has a number here:

    fit = examine_vector(sae, params, vector, acts, Pursuit(k=32))
    fit.shorter              out of distribution: share of the activations that are shorter than the vector
    fit.bias_cosine          1 if the latents reconstruct what they reconstruct of no vector at all
    fit.negative_share       share of the vector's squared coefficients that are negative, which no encoder can express
    fit.explained, fit.explained_nonnegative             shares of |v|^2, by the pursuit with signs and without

Coefficients are those of a pursuit, for rows of length 1, so that they do not depend on the encoder.

Sharp edges: parameters must be for unnormalised activations (`sae.fold`), and the vector has the length at which it is
added. The bias of the decoder is a mean of activations and no part of a difference: the pursuit does not subtract it.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax.errors import SteeringError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.pursuit import Pursuit
from mechjax.steering.checks import check_finite, check_vector
from mechjax.steering.clamping import check_autoencoder


@dataclasses.dataclass(frozen=True)
class DictionaryFit:
  """Numbers that tell how far a dictionary can describe a vector.

  Attributes:
    shorter: share of the activations that are shorter than the vector; near 0 or 1 if its length is unusual.
    bias_cosine: cosine between the reconstructions of the vector and of 0; NaN if one of them is 0.
    explained: share of the squared length that k directions explain with coefficients of any sign.
    explained_nonnegative: the same with coefficients that are not negative.
    negative_share: share of negative coefficients in the sum of squares of the first.
  """

  shorter: float
  bias_cosine: float
  explained: float
  explained_nonnegative: float
  negative_share: float


def examine_vector(
  sae: Architecture,
  params: Params,
  vector_D: Float[Array | np.ndarray, ' D'],
  acts_BxD: Float[Array | np.ndarray, 'B D'],
  pursuit: Pursuit,
) -> DictionaryFit:
  """Measures whether a vector is one that a dictionary can describe.

  Args:
    sae: an autoencoder of the site.
    params: its parameters.
    vector_D: the vector, at the length at which it is added.
    acts_BxD: activations of the site, without special tokens and padding.
    pursuit: method and number of directions; its sign setting is not used.

  Raises:
    SteeringError: a transcoder; a vector of another width, or zero; no activations; NaN.
    SAEError: as for the pursuit.
  """
  check_autoencoder(sae)
  v_D = check_vector('vector', vector_D, (1,))
  acts = np.asarray(acts_BxD, np.float64)
  if v_D.shape != (sae.d_in,) or acts.ndim != 2 or acts.shape[1] != sae.d_in or not len(acts):
    raise SteeringError(
      f'a vector {list(v_D.shape)} and activations {list(acts.shape)} for a dictionary of width {sae.d_in}',
      hint='[D], and one row or more of [B, D]',
    )
  check_finite('acts', acts)
  length = float(np.linalg.norm(np.asarray(v_D, np.float64)))
  both = np.asarray(sae.reconstruct(params, jnp.stack([v_D, jnp.zeros_like(v_D)])), np.float64)
  lengths = np.linalg.norm(both, axis=1)
  signed, share = _explain(params, v_D, dataclasses.replace(pursuit, nonnegative=False))
  return DictionaryFit(
    shorter=float(np.mean(np.linalg.norm(acts, axis=1) < length)),
    bias_cosine=float(both[0] @ both[1] / lengths.prod()) if lengths.all() else float('nan'),
    explained=share,
    explained_nonnegative=_explain(params, v_D, dataclasses.replace(pursuit, nonnegative=True))[1],
    negative_share=float(np.square(signed[signed < 0]).sum() / np.square(signed).sum()),
  )


def _explain(
  params: Params, v_D: Float[Array, ' D'], pursuit: Pursuit
) -> tuple[Float[np.ndarray, ' k'], float]:
  """Coefficients of rows of length 1, and the share of |v|^2 that they explain."""
  code = pursuit.code(params['W_dec'], v_D[None])
  rows = np.asarray(params['W_dec'], np.float64)[np.asarray(code.indices[0])]
  values, v = np.asarray(code.values[0], np.float64), np.asarray(v_D, np.float64)
  rest = v - values @ rows
  return values * np.linalg.norm(rows, axis=1), 1 - float(rest @ rest / (v @ v))
