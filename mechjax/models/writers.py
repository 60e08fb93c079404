"""The parameters of our decoder that write to the residual stream.

An edit of weights that stands for an edit of the stream (`mechjax.steering.weight_twin`) changes every parameter whose
output is added to the stream, and no other. Which ones these are is knowledge of this decoder, so it stands here, as a
table, and the edit itself knows no decoder.

    params, config = untie(model.params, model.config)
    table = stream_writers(config)            {'embed/tokens': -1, 'layers/attn/o': -1, ...}

Sharp edge: where embedding and unembedding are one array, an edit of the embedding changes what the logits read. Such a
model is refused until `untie` has made two arrays of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mechjax import errors
from mechjax.models.config import Config
from mechjax.models.parameters import shapes

PATHS = (
  'embed/tokens',
  'embed/positions',
  'layers/attn/o',
  'layers/attn/o_bias',
  'layers/mlp/down',
  'layers/mlp/down_bias',
)
"""Paths of all parameters that write to the stream; a model has some of them. D is the last axis of each."""


def stream_writers(config: Config) -> dict[str, int]:
  """Axis of D of each parameter that writes to the residual stream, keyed by its path.

  Args:
    config: the description of the decoder.

  Raises:
    MechjaxError: the embedding is tied to the unembedding, or norms stand between the matrices and the stream.
  """
  if config.post_norms:
    raise errors.MechjaxError(
      'post_norms=True: no change of the weights has the effect of removing a direction from the stream',
      cause='a norm stands between each matrix and the stream, as in Gemma 2 and 3: with the direction taken out of '
      'the matrix, the norm divides by another number, and everything else that is written changes as well',
      hint='remove the direction from the stream while the model runs: steering.Ablate(steering.WRITES, r)',
    )
  if config.tied:
    raise errors.MechjaxError(
      'tied=True: the embedding, which writes to the stream, is also the unembedding, which reads it',
      hint='params, config = writers.untie(params, config), and use both from here on',
    )
  tree = shapes(config)
  return {path: -1 for path in PATHS if _has(tree, path)}


def untie(params: dict[str, Any], config: Config) -> tuple[dict[str, Any], Config]:
  """The same model with an unembedding of its own; `params` and `config` themselves if it has one already."""
  if not config.tied:
    return params, config
  kernel = params['embed']['tokens'].T
  return {**params, 'unembed': {'kernel': kernel}}, dataclasses.replace(config, tied=False)


def _has(tree: dict[str, Any], path: str) -> bool:
  node: Any = tree
  for key in path.split('/'):
    if key not in node:
      return False
    node = node[key]
  return True
