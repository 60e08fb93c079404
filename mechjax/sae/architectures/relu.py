"""ReLU with an L1 penalty: the first sparse autoencoder, and the simplest.

    f = ReLU((x - b_dec) @ W_enc + b_enc)
    L = |x - x_hat|^2 + sparsity |f|_1

(Bricken et al. 2023, "Towards Monosemanticity"). The penalty also acts on large activations, so reconstructions
are too small (shrinkage); the other architectures avoid that.

In a crosscoder (`parts`) the penalty is sparsity sum_i f_i sum_s |d_i^s|, the lengths of a latent's directions included
(Lindsey et al. 2024). It can shrink the direction of a latent in one part to nothing although the part has the feature
(Minder et al. 2025), so differences between models are compared with those of a BatchTopK crosscoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.crosscoder_parts import weigh
from mechjax.sae.architectures.jumprelu import JumpReLU, with_threshold
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.p_annealing import PAnnealing, check_annealing, penalty
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.checks import check_field, check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReLU(Architecture):
  """ReLU latents and an L1 penalty.

  Attributes:
    sparsity: coefficient of the penalty; can be traced.
    annealing: schedule of the exponent of the penalty, or None for the L1 norm throughout.
  """

  TRACED = ('sparsity',)
  PER_LATENT = {'b_enc': 0.0}  # noqa: RUF012
  HAS_PARTS = True

  TRAINING_ONLY = {**Architecture.TRAINING_ONLY, 'annealing': None}  # noqa: RUF012

  sparsity: float
  annealing: PAnnealing | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number(self, 'sparsity')
    check_field(self, 'sparsity', self.sparsity >= 0, 'at least 0')
    check_annealing(self)

  def training_state(self) -> Params:
    return super().training_state() | (self.annealing.init() if self.annealing else {})

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    return jax.nn.relu(self.pre_activations(params, x))

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    z = self.pre_activations(params, x)
    f = jax.nn.relu(z)
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    total, observed = penalty(self.annealing, params, weigh(f, params['W_dec'], self.parts))
    sparsity = self.hparam(hparams, 'sparsity', f.dtype) * total
    parts = {'reconstruction': reconstruction, 'sparsity': sparsity}
    return total_loss(self, params, parts, f, error, lambda: z, dead, observed)

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    return with_threshold(self, params, jnp.zeros(self.width))
