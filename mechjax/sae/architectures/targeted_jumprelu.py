"""JumpReLU with a target for the number of active latents, and a penalty on frequent ones: Gemma Scope 2.

The coefficient of an L0 penalty has to be searched for every number of active latents. Here that number is the
setting, and the penalty is quadratic around it. A second penalty keeps latents from being active on a large share of
the tokens, which JumpReLU dictionaries are prone to:

    l0_b = sum_i H(z_bi - theta_i)            p_i = mean_b H(z_bi - theta_i)
    L = |x - x_hat|^2  +  sparsity ( mean_b 2 (l0_b - l0)^2 / l0
                                     + frequency_weight sum_i max(p_i - frequency_target, 0)^2 / frequency_target )

(McDougall et al. 2025, "Gemma Scope 2", which names both penalties. The quadratic one is that of SAELens's "quadratic"
mode, and per token; no published formula of the other one was at hand, and the form here is ours: it is zero for
latents below the target, so it does not act against the first.) Derivatives are those of `straight_through`.

    TargetedJumpReLU(d_in=768, width=6144, l0=32)

At inference it is a `JumpReLU`, and a file holds one.

Sharp edges: both derivatives reach thresholds only, and only those within a bandwidth of a pre-activation; see
`JumpReLU` for units. `sparsity` rises during its warm-up, and for Adam only its ratio to the reconstruction counts.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.jumprelu import JumpReLU
from mechjax.sae.checks import check_field, check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetedJumpReLU(JumpReLU):
  """Latents that are 0 up to a learned threshold, a target for their number, and a limit of their frequency.

  Attributes:
    l0: number of active latents of a token to aim at; can be traced.
    sparsity: coefficient of both penalties; can be traced.
    frequency_weight: weight of the penalty on frequent latents; 0 for none.
    frequency_target: share of the tokens on which a latent may be active without a penalty, in (0, 1).
  """

  TRACED: ClassVar[tuple[str, ...]] = ('l0', 'sparsity')

  l0: float
  sparsity: float = 1e-3
  frequency_weight: float = 1.0
  frequency_target: float = 0.1

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number(self, 'l0', 'frequency_weight', 'frequency_target')
    check_field(self, 'l0', 0 < self.l0 <= self.width, f'in (0, width={self.width}]')
    check_field(self, 'frequency_weight', self.frequency_weight >= 0, 'at least 0')
    check_field(self, 'frequency_target', 0 < self.frequency_target < 1, 'in (0, 1)')

  def penalty(self, active_BxM: jax.Array, hparams: HParams | None) -> jax.Array:
    l0 = self.hparam(hparams, 'l0', active_BxM.dtype)
    total = jnp.mean(2 * jnp.square(jnp.sum(active_BxM, -1) - l0) / l0)
    if self.frequency_weight:
      excess = jax.nn.relu(jnp.mean(active_BxM, 0) - self.frequency_target)
      total += self.frequency_weight * jnp.sum(jnp.square(excess)) / self.frequency_target
    return total

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    plain, left = super().for_inference(params)
    settings = {f.name: getattr(plain, f.name) for f in dataclasses.fields(JumpReLU)}
    return JumpReLU(**settings | {'sparsity': 0.0}), left

  def for_inference(self, params: Params) -> tuple[Architecture, Params]:
    return self.as_jumprelu(params)
