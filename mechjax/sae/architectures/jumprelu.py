"""JumpReLU with an L0 penalty: each latent has a learned threshold.

    z = (x - b_dec) @ W_enc + b_enc        theta = exp(log_threshold)
    f = z * H(z - theta)
    L = |x - x_hat|^2 + sparsity sum_i H(z_i - theta_i)

(Rajamanoharan et al. 2024, "Jumping Ahead"; Lieberum et al. 2024, "Gemma Scope"). The penalty counts active latents
and does not depend on their size, so nothing shrinks. Derivatives are those of `straight_through`.

Sharp edges: the bandwidth and the initial threshold of 1e-3 are those of Gemma Scope and assume E|x|^2 = 1. The
penalty has a gradient for the thresholds only: it affects encoder and decoder only through them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.losses import LossOutput, total_per_token
from mechjax.sae.checks import check_field, check_number
from mechjax.sae.ops.straight_through import heaviside, jumprelu


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpReLU(Architecture):
  """Latents that are 0 up to a learned threshold, and an L0 penalty.

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

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    return jumprelu(self.pre_activations(params, x), self.threshold(params), self.bandwidth)

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    z = self.pre_activations(params, x)
    theta = self.threshold(params)
    f = jumprelu(z, theta, self.bandwidth)
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    n_active = total_per_token(heaviside(z, theta, self.bandwidth))
    sparsity = self.hparam(hparams, 'sparsity', f.dtype) * n_active
    parts = {'reconstruction': reconstruction, 'sparsity': sparsity}
    return self.total_loss(params, parts, f, error, lambda: z, dead)

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    return self, params

  def threshold(self, params: Params) -> jax.Array:
    """theta, [M]."""
    return jnp.exp(params['log_threshold'])


def with_threshold(
  sae: Architecture, params: Params, threshold: jax.Array, **changes: jax.Array
) -> tuple[JumpReLU, Params]:
  """A JumpReLU for inference that shares the matrices of another dictionary.

  Args:
    sae: the other dictionary.
    params: its parameters.
    threshold: threshold of each latent, [M], at least 0.
    **changes: W_enc or b_enc, if they differ.

  Returns:
    The JumpReLU, whose sparsity coefficient of 0 is not that of the training, and its parameters.
  """
  kept = ('W_enc', 'W_dec', 'b_dec', 'W_skip', 'b_enc')
  new = {name: params[name] for name in kept if name in params}
  new |= {'log_threshold': jnp.log(threshold), **changes}
  return JumpReLU(d_in=sae.d_in, width=sae.width, d_out=sae.d_out, skip=sae.skip, sparsity=0.0), new
