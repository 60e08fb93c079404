"""Weights of the MLPs of our own decoder, as one matrix from neurons to the stream.

A neuron writes `down[f]` to the output of its MLP; in models with a norm after the MLP (Gemma 2 and 3) the gain of that
norm follows, and a scale that depends on the token. With the scale of a token frozen, the output is linear in the
neurons, and the scale need not be known: it is the ratio of the output to the product of neurons and weights.

    out = read_writers(model, layers=6)              [L, F, D], with the gain
    scale = freeze_scale(post, outputs, out)         [B, L], the same in a model without such a norm: 1
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from mechjax.errors import FactsError
from mechjax.models.language_model import LanguageModel
from mechjax.probing.mechanistic import MechanisticProbe


def check_weights(model: LanguageModel) -> None:
  """Checks that the weights of the MLPs are known.

  Raises:
    FactsError: the forward pass is that of an upstream code, or the model has no MLPs.
  """
  if model.config is None or not model.config.d_mlp:
    cause = 'an upstream code' if model.config is None else 'a model of attention alone'
    raise FactsError(
      f'the MLP weights of {model.name!r} are not known',
      cause=cause,
      hint='--parts without hashing; or load the model with our own decoder',
    )


def read_writers(model: LanguageModel, layers: int) -> Float64[np.ndarray, 'L F D']:
  """Weights from the neurons of the first layers to the stream, with the gain of a norm after the MLP."""
  check_weights(model)
  own = model.params['layers']
  down = np.asarray(own['mlp']['down'][:layers], np.float64)
  if 'mlp_post_norm' not in own:
    return down
  offset = model.config.norm_offset  # type: ignore[union-attr]
  gain = np.asarray(own['mlp_post_norm']['scale'][:layers], np.float64) + offset
  return down * gain[:, None]


def freeze_scale(
  post: Float[np.ndarray, 'B L F'],
  out: Float[np.ndarray, 'B L D'],
  writers: Float[np.ndarray, 'L F D'],
) -> Float64[np.ndarray, 'B L']:
  """Scale of the norm after the MLP at each token: out = scale * (post @ writers).

  Raises:
    FactsError: the outputs are not of this form, such as with a bias or with weights of other layers.
  """
  raw = np.einsum('blf,lfd->bld', post, writers)
  scale = (raw * out).sum(-1) / (raw**2).sum(-1)
  wrong = np.abs(scale[..., None] * raw - out).max((0, 2)) > 1e-3 * np.abs(out).max((0, 2))
  if wrong.any():
    raise FactsError(
      f'the output of MLP {int(np.argmax(wrong))} is not a multiple of its neurons times their weights',
      cause='a bias, or the weights of another layer',
    )
  return scale


def centre_directions(probe: MechanisticProbe) -> Float64[np.ndarray, 'D C']:
  """Directions of a probe without their mean over the classes, and without that over the stream if its norm removes it.

  Applied to the normalised stream, differences of scores between classes are those of the probe.
  """
  found = np.asarray(probe.directions, np.float64)
  found = found - found.mean(1, keepdims=True)
  return found - found.mean(0) if probe.norm == 'layer' else found
