"""The weights of our decoder through which its heads read the stream and write to the logits, as plain arrays.

A probe that is made from the weights of a head (`mechjax.probing.mechanistic`) takes arrays and no model. Where they
are in our tree, and how a family stores them (scales that begin at 0, a norm after the attention, tied embeddings), is
knowledge of this decoder:

    weights = HeadWeights.of(**take_head_weights(model.params, model.config))
    weights = CompositionWeights.of(**take_composition_weights(model.params, model.config))

Arrays keep their dtype; scales are returned as they are multiplied.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mechjax import errors, precision
from mechjax.models.config import Config


def take_head_weights(params: dict[str, Any], config: Config | None) -> dict[str, Any]:
  """Arguments of `mechjax.probing.heads.HeadWeights.of`.

  Args:
    params: parameters of our decoder.
    config: its description.

  Returns:
    W_V [L, D, K, H], W_O [L, N, H, D], W_U [D, V], attn_gain [L, D] or None, post_gain [L, D] or None, final_gain [D]
    or None, norm and eps.

  Raises:
    MechjaxError: the model runs in an upstream code, whose parameters are not known here.
  """
  config = _check_config(config)
  layers = params['layers']
  return {
    'W_V': layers['attn']['v'],
    'W_O': layers['attn']['o'],
    'W_U': np.asarray(params['embed']['tokens']).T if config.tied else params['unembed']['kernel'],
    'attn_gain': _gain(layers, 'attn_norm', config),
    'post_gain': _gain(layers, 'attn_post_norm', config),
    'final_gain': _gain(params, 'final_norm', config),
    'norm': config.norm,
    'eps': config.norm_eps,
  }


def take_composition_weights(params: dict[str, Any], config: Config | None) -> dict[str, Any]:
  """Arguments of `mechjax.decomposition.CompositionWeights.of`.

  Args:
    params: parameters of our decoder.
    config: its description.

  Returns:
    W_Q [L, D, N, H], W_K and W_V [L, D, K, H], W_O [L, N, H, D], attn_gain and post_gain [L, D] or None, q_gain and
    k_gain [L, H] or None, and norm.

  Raises:
    MechjaxError: the model runs in an upstream code, whose parameters are not known here.
  """
  config = _check_config(config)
  layers = params['layers']
  attn = layers['attn']
  gains = {
    f'{name}_gain': precision.wide(attn[f'{name}_norm']) + config.norm_offset
    if config.qk_norm
    else None
    for name in 'qk'
  }
  return gains | {
    'W_Q': attn['q'],
    'W_K': attn['k'],
    'W_V': attn['v'],
    'W_O': attn['o'],
    'attn_gain': _gain(layers, 'attn_norm', config),
    'post_gain': _gain(layers, 'attn_post_norm', config),
    'norm': config.norm,
  }


def _check_config(config: Config | None) -> Config:
  if config is None:
    raise errors.MechjaxError(
      'the model runs in an upstream code, whose parameters are not known here',
      hint="load it with code='decoder'; or make HeadWeights.of from its own arrays",
    )
  return config


def _gain(tree: dict[str, Any], name: str, config: Config) -> jax.Array | None:
  """Scale of a norm as it is multiplied; None if there is no such norm."""
  return precision.wide(tree[name]['scale']) + config.norm_offset if name in tree else None
