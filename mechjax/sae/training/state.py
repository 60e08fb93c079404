"""State of a training and metrics of a step: trees of arrays, in which an ensemble is one entry.

    state.ensembles['topk'].params['W_enc']          [N, D, M], a leading axis for the members
    metrics.ensembles['topk']['fvu']                 [N]

A checkpoint is a `State`, and a resumed training continues from it bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from mechjax.sae.architectures import Params

NEVER = -(2**30)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Members:
  """The dictionaries of an ensemble; every array has a leading axis N.

  Attributes:
    params: their parameters.
    optimiser: their optimiser states.
    tokens_since_fired: tokens since each latent last fired, int32 [N, M].
    resampled_at: number of completed steps when latents were last resampled, int32 [N]; initially `NEVER`.
  """

  params: Params
  optimiser: Any
  tokens_since_fired: jax.Array
  resampled_at: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Complete training state.

  Attributes:
    step: number of completed updates, int32.
    ok: whether all losses and gradients have been finite so far, bool.
    bad_step: the first step at which they were not, int32; -1 while `ok`.
    ensembles: members of each ensemble, by name.
  """

  step: jax.Array
  ok: jax.Array
  bad_step: jax.Array
  ensembles: dict[str, Members]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
  """Metrics of a step.

  Attributes:
    ensembles: by name of the ensemble, then by name of the metric, [N]: 'loss' and its parts, 'l0' (active latents per
      token), 'fvu' (squared error over squared distance from the batch mean), 'dead' (fraction of latents),
      'grad_norm'; for cross-layer transcoders also 'fvu_by_layer', [N, L], for crosscoders 'fvu_by_part', [N, P], and
      for members that are to agree 'mfr', the weighted penalty, which is not part of 'loss'.
    rate: the learning rate of this step, before the factor of resampling.
    ok: as in the state.
  """

  ensembles: dict[str, dict[str, jax.Array]]
  rate: jax.Array
  ok: jax.Array
