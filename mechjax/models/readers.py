"""The parameters of our decoder that turn the last layer into logits, as plain arrays.

The science of `mechjax.neurons` takes weights and no model. Where they are in our tree, and how a family stores them
(Gemma's scales begin at 0, embeddings may be tied, a norm may follow the MLP), is knowledge of this decoder:

    readout = Readout.of(**take_readout(model.params, model.config))
    writes = NeuronWrites.of(**take_last_neurons(model.params, model.config))

Both are copies of nothing where this is possible: a tied unembedding is a transposed view on a CPU.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mechjax import errors, precision
from mechjax.models.config import Config


def take_readout(params: dict[str, Any], config: Config | None) -> dict[str, Any]:
  """Arguments of `mechjax.neurons.Readout.of`: the final norm and the unembedding.

  Args:
    params: parameters of our decoder.
    config: its description.

  Returns:
    gain [D] or None, W_U [D, V], eps, norm, bias [D] or None, logit_bias [V] or None, softcap.

  Raises:
    MechjaxError: the model runs in an upstream code, whose parameters are not known here.
  """
  c = _check_config(config)
  norm = params['final_norm'] if c.final_norm else {}
  scale = norm.get('scale')
  return {
    'gain': None if scale is None else _gain(scale, c),
    'W_U': np.asarray(params['embed']['tokens']).T if c.tied else params['unembed']['kernel'],
    'eps': c.norm_eps,
    'norm': c.norm if c.final_norm else 'none',
    'bias': norm.get('bias'),
    'logit_bias': params['unembed']['bias'] if c.unembed_bias else None,
    'softcap': c.logit_softcap,
  }


def take_last_neurons(params: dict[str, Any], config: Config | None) -> dict[str, Any]:
  """Arguments of `mechjax.neurons.NeuronWrites.of`: the output of the last MLP.

  Args:
    params: parameters of our decoder.
    config: its description.

  Returns:
    W_out [F, D], bias [D] or None, and gain [D] and eps of a norm after the MLP, or None.

  Raises:
    MechjaxError: the model runs in an upstream code, has no MLPs, or LayerNorm after them.
  """
  c = _check_config(config)
  if not c.d_mlp:
    raise errors.MechjaxError('an attention-only model has no neurons')
  if c.post_norms and c.norm == 'layer':
    raise errors.MechjaxError("post_norms=True with norm='layer': no such model is known")
  last = jax.tree.map(lambda x: x[-1], params['layers'])
  post = last.get('mlp_post_norm')
  return {
    'W_out': last['mlp']['down'],
    'bias': last['mlp'].get('down_bias'),
    'gain': None if post is None else _gain(post['scale'], c),
    'eps': None if post is None else c.norm_eps,
  }


def _gain(scale: jax.Array, config: Config) -> jax.Array:
  """Scale of a norm as it is multiplied."""
  return precision.wide(scale) + config.norm_offset


def _check_config(config: Config | None) -> Config:
  if config is None:
    raise errors.MechjaxError(
      'the model runs in an upstream code, whose parameters are not known here',
      hint="load it with code='decoder'; or make Readout.of and NeuronWrites.of from its own arrays",
    )
  return config
