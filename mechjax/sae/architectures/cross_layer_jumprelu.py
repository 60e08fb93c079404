"""Cross-layer transcoders with thresholds, and the penalty and constants of "Circuit Tracing".

    z^l = x^l @ W_enc^l + b_enc^l        theta^l = exp(log_threshold^l)        a^l = z^l H(z^l - theta^l)
    L = sum_l |y_hat^l - y^l|^2  +  sparsity sum_l sum_i tanh(c |W_dec,i^l| a_i^l)
        + pre_activation sum over dead i of ReLU(theta_i - z_i) |W_dec,i|

(Ameisen, Lindsey et al. 2025, equations 3 and 4, and appendix on training.) |W_dec,i| is the length of all directions
of a latent together. The last part gives dead latents, which have no other gradient, a reason to fire. The coefficient
of the penalty rises over the whole training.

    clt = CrossLayerJumpReLU(n_layers=18, d_in=640, d_out=640, width=1024, sparsity=1e-3)

Derivatives with respect to thresholds are those of `ops.straight_through`.

Sharp edges: the constants c, the initial threshold and the coefficient of dead latents are those of the paper, whose
activations have a mean square length of D, where the trainings here have 1: tanh saturates later, and a coefficient of
the paper corresponds to a smaller one here. Which latents are dead is an argument of `loss`; without it the last part
is zero.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import HParams, Params
from mechjax.sae.architectures.cross_layer import CrossLayer
from mechjax.sae.architectures.jumprelu import JumpReLU
from mechjax.sae.architectures.losses import LossOutput, total_per_token
from mechjax.sae.architectures.thresholds import LearnedThresholds
from mechjax.sae.checks import check_field, check_number
from mechjax.sae.ops.straight_through import jumprelu


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossLayerJumpReLU(CrossLayer, LearnedThresholds):
  """Latents that are 0 up to a learned threshold, and a penalty that saturates.

  Attributes:
    c: factor inside tanh.
    pre_activation: coefficient of the loss of dead latents.
    initial_threshold: initial theta.
  """

  RAMPED_THROUGHOUT = True

  c: float = 4.0
  pre_activation: float = 3e-6
  initial_threshold: float = 0.03

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number(self, 'c', 'pre_activation')
    check_field(self, 'c', self.c > 0, 'positive')
    check_field(self, 'pre_activation', self.pre_activation >= 0, 'at least 0')

  def activate(self, params: Params, layer: int, z: jax.Array) -> jax.Array:
    return jumprelu(z, self.threshold(params)[layer], self.bandwidth)

  def layer_dictionary(self, params: Params, layer: int) -> tuple[JumpReLU, Params]:
    one = JumpReLU(
      d_in=self.d_in,
      d_out=self.d_out,
      width=self.width,
      skip=self.skip,
      sparsity=0.0,
      bandwidth=self.bandwidth,
    )
    return one, self.layer_params(params, layer)

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
    length = self.row_lengths(params)
    saturating = jnp.tanh(self.c * length * f).reshape(len(x), -1)
    sparsity = self.hparam(hparams, 'sparsity', f.dtype) * total_per_token(saturating)
    more = {'sparsity': sparsity, 'aux': self._revive(z, theta, length, dead)}
    written = [self._written(params, layer, f[:, layer]) for layer in range(self.n_layers)]
    return self.total_of(params, written, f.reshape(len(x), -1), x, y, more)

  def _revive(
    self, z: jax.Array, theta: jax.Array, length: jax.Array, dead: jax.Array | None
  ) -> jax.Array:
    """The loss of dead latents; `dead` is bool [L M]."""
    if dead is None:
      return jnp.zeros((), z.dtype)
    missing = jax.nn.relu(theta - z) * length
    silent = jnp.where(dead.reshape(theta.shape), missing, 0)
    return self.pre_activation * total_per_token(silent.reshape(len(z), -1))
