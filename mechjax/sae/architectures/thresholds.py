"""Learned thresholds: the settings that all JumpReLU dictionaries share, of one site and of several layers.

    JumpReLU(LearnedThresholds)                      CrossLayerJumpReLU(CrossLayer, LearnedThresholds)

A threshold is stored as its logarithm, so that it stays positive: theta = exp(log_threshold).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, Params
from mechjax.sae.checks import check_field, check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedThresholds(Architecture):
  """Latents that are 0 up to a learned threshold, and a penalty.

  Attributes:
    sparsity: coefficient of the penalty; can be traced.
    bandwidth: eps, the width of the kernel of the straight-through estimators, in units of pre-activations.
    initial_threshold: initial theta. Adam changes its logarithm by at most the learning rate per step, so in a
      training of a few thousand steps theta must start near its final value.
  """

  TRACED: ClassVar[tuple[str, ...]] = ('sparsity',)
  PER_LATENT = {'b_enc': 0.0, 'log_threshold': math.log(1e-3)}  # noqa: RUF012

  sparsity: float
  bandwidth: float = 1e-3
  initial_threshold: float = 1e-3

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number(self, 'sparsity', 'bandwidth', 'initial_threshold')
    check_field(self, 'sparsity', self.sparsity >= 0, 'at least 0')
    for name in ('bandwidth', 'initial_threshold'):
      check_field(self, name, getattr(self, name) > 0, 'positive')

  def initial_values(self) -> dict[str, float]:
    return super().initial_values() | {'log_threshold': math.log(self.initial_threshold)}

  def threshold(self, params: Params) -> jax.Array:
    """theta, with the shape of `log_threshold`."""
    return jnp.exp(params['log_threshold'])
