"""Gated: a gate decides whether a latent is active, a magnitude how strongly; only the gate is penalised.

    a  = (x - b_dec) @ W_enc
    pi = a + b_gate                                              active if pi > 0
    f  = 1[pi > 0] * ReLU(exp(r_mag) * a + b_mag)
    L  = |x - x_hat(f)|^2 + sparsity |ReLU(pi)|_1 + |x - x_hat_frozen(ReLU(pi))|^2

(Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", equations 6 to 8; W_enc is
their W_gate, and the two encoders share it up to exp(r_mag)). The step in f has no derivative; the gate learns from the
last term. The decoder is held fixed in that term, so that shrunken activations do not shape it. The term is the part
named 'gate'.

A gated dictionary is a JumpReLU with thresholds b_mag - exp(r_mag) b_gate: `as_jumprelu`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.jumprelu import JumpReLU, with_threshold
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.p_annealing import PAnnealing, check_annealing, penalty
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.checks import check_field, check_number
from mechjax.sae.ops.straight_through import above


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated(Architecture):
  """Latents with a gate and a magnitude, and an L1 penalty on the gate.

  Attributes:
    sparsity: coefficient of the penalty; can be traced.
    annealing: schedule of the exponent of the penalty on ReLU(pi), or None for the L1 norm throughout.
  """

  TRACED = ('sparsity',)
  PER_LATENT = {'b_gate': 0.0, 'r_mag': 0.0, 'b_mag': 0.0}  # noqa: RUF012
  DECODER_PRODUCTS = 5  # two decoded activations, their two gradients, and one of the decoder

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
    return self._gate_and_latents(params, x)[1]

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    pi, f = self._gate_and_latents(params, x)
    gate = jax.nn.relu(pi)
    frozen = params | {name: lax.stop_gradient(params[name]) for name in self._decoder(params)}
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    gate_loss, _ = self.reconstruction_loss(frozen, gate, x, y)
    total, observed = penalty(self.annealing, params, gate)
    sparsity = self.hparam(hparams, 'sparsity', f.dtype) * total
    parts = {'reconstruction': reconstruction, 'sparsity': sparsity, 'gate': gate_loss}
    return total_loss(self, params, parts, f, error, lambda: pi, dead, observed)

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    scale = jnp.exp(params['r_mag'])
    threshold = jax.nn.relu(params['b_mag'] - scale * params['b_gate'])
    return with_threshold(
      self, params, threshold, W_enc=params['W_enc'] * scale, b_enc=params['b_mag']
    )

  def _gate_and_latents(self, params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    a = self.project(params, x)
    pi = a + params['b_gate']
    magnitude = jax.nn.relu(jnp.exp(params['r_mag']) * a + params['b_mag'])
    return pi, above(pi, 0.0, magnitude)

  def _decoder(self, params: Params) -> set[str]:
    return {'W_dec', 'b_dec', 'W_skip'} & {*params}
