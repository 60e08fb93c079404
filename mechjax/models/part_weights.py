"""The weights of our decoder by which heads and neurons write to the stream, as plain arrays.

A logit is split over heads and neurons by `mechjax.circuits`, which takes arrays and no model. Where they are in our
tree, and how a family stores them (biases, norms after the matrices, scales that begin at 0), is knowledge of this
decoder:

    weights = PartWeights.of(**take_part_weights(model.params, model.config))

Arrays keep their dtype; scales are returned as they are multiplied.
"""

from __future__ import annotations

from typing import Any

import jax

from mechjax import errors, precision
from mechjax.models.config import Config


def take_part_weights(params: dict[str, Any], config: Config | None) -> dict[str, Any]:
  """Arguments of `mechjax.decomposition.PartWeights.of`.

  Args:
    params: parameters of our decoder.
    config: its description.

  Returns:
    W_O [L, N, H, D], W_out [L, F, D] or None, attn_bias and mlp_bias [L, D] or None, and attn_gain and mlp_gain [L, D]
    of norms after these matrices, or None.

  Raises:
    MechjaxError: the model runs in an upstream code, or has LayerNorm after the matrices.
  """
  if config is None:
    raise errors.MechjaxError(
      'the model runs in an upstream code, whose parameters are not known here',
      hint="load it with code='decoder'; or make PartWeights.of from its own arrays",
    )
  if config.post_norms and config.norm == 'layer':
    raise errors.MechjaxError("post_norms=True with norm='layer': no such model is known")
  layers = params['layers']
  mlp = layers.get('mlp', {})
  return {
    'W_O': layers['attn']['o'],
    'W_out': mlp.get('down'),
    'attn_bias': layers['attn'].get('o_bias'),
    'mlp_bias': mlp.get('down_bias'),
    'attn_gain': _gain(layers, 'attn_post_norm', config),
    'mlp_gain': _gain(layers, 'mlp_post_norm', config),
  }


def _gain(layers: dict[str, Any], name: str, config: Config) -> jax.Array | None:
  return precision.wide(layers[name]['scale']) + config.norm_offset if name in layers else None
