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

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.losses import LossOutput, total_per_token
from mechjax.sae.architectures.thresholds import LearnedThresholds
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.ops.straight_through import heaviside, jumprelu


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpReLU(LearnedThresholds):
  """Latents that are 0 up to a learned threshold, and an L0 penalty; the settings are those of the base class."""

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
    penalty = self.penalty(heaviside(z, theta, self.bandwidth), hparams)
    sparsity = self.hparam(hparams, 'sparsity', f.dtype) * penalty
    parts = {'reconstruction': reconstruction, 'sparsity': sparsity}
    return total_loss(self, params, parts, f, error, lambda: z, dead)

  def penalty(self, active_BxM: jax.Array, hparams: HParams | None) -> jax.Array:
    """The penalty without its coefficient, a scalar.

    Args:
      active_BxM: 1 where a latent is active, else 0; differentiable with respect to thresholds.
      hparams: traced hyperparameters, as in `loss`.
    """
    del hparams
    return total_per_token(active_BxM)

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    return self, params


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
  same = ('d_in', 'width', 'd_out', 'skip', 'matmuls', 'provenance')
  return JumpReLU(**{name: getattr(sae, name) for name in same}, sparsity=0.0), new
