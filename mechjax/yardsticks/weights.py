"""The size of an edit: the share of a reconstruction that each latent makes up.

An edit of a few latents may change most of an activation, if these are large. Each latent's contribution along the
reconstruction is its weight (Makelov et al. 2024, arXiv 2405.08366, section 4.2):

    w_i = f_i d_i . (x_hat - b_dec) / |x_hat - b_dec|^2        sum over i = 1

    weights = measure_weights(f, W_dec)                        [B, M]
    sum_weights(weights, edit, n=4)                            [B]: the share that the first four latents had

Sharp edges: a weight is negative where a latent points against the sum of the others, so that a set of latents can have
more than 1. A prompt without an active latent has no weights, and is an error.

Letters: B prompts, M latents, D features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import Rows, as_matrix, as_numbers, check_whole
from mechjax.yardsticks.latent_edits import LatentEdit, Numbers


def measure_weights(latents: Numbers, W_dec: Rows) -> Float64[np.ndarray, 'B M']:
  """Weight of each latent in the reconstruction.

  Args:
    latents: latents [B, M].
    W_dec: rows of the decoder [M, D].

  Raises:
    YardstickError: another number of latents than rows, NaN; prompts whose reconstruction is the bias alone.
  """
  f, rows = as_numbers('latents', latents, 2), as_numbers('W_dec', W_dec, 2)
  if f.shape[1] != len(rows):
    raise YardstickError(f'{f.shape[1]} latents for a decoder with {len(rows)}')
  sums = f @ rows
  norms = np.sum(sums**2, 1)
  if not (norms > 0).all():
    raise YardstickError(
      f'the reconstruction of {int((norms == 0).sum())} prompts is the bias alone',
      where=f'prompt {int(norms.argmin())}',
      cause='no active latent, or latents that cancel',
      hint='leave these prompts out, and report their number',
    )
  return f * (sums @ rows.T) / norms[:, None]


def sum_weights(
  weights: Float64[np.ndarray, 'B M'], edit: LatentEdit, n: int | None = None
) -> Float64[np.ndarray, ' B']:
  """Sum of the weights of the first n latents of an edit, or of all of them.

  Raises:
    YardstickError: weights of other prompts, or more latents than the edit has.
  """
  w = as_matrix('weights', weights, len(edit.indices))
  k = edit.indices.shape[1]
  n = k if n is None else check_whole('n', n, 0)
  if n > k or edit.indices.max(initial=-1) >= w.shape[1]:
    raise YardstickError(f'n={n} of an edit of {k} latents, weights of shape {w.shape}')
  chosen = edit.indices[:, :n]
  values = np.take_along_axis(w, np.maximum(chosen, 0), 1)
  return np.where(chosen < 0, 0.0, values).sum(1)
