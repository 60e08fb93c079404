"""Losses that revive dead latents.

A latent that never fires has no gradient and does not change. Two losses (`architectures.losses.AuxLoss`) act through
the pre-activations of dead latents on the error that the live latents leave:

`AuxK` (Gao et al. 2024, appendix A.2): the k_aux largest dead pre-activations of each token reconstruct the detached
error e without a bias. With e_hat the reconstruction and var(e) the mean of |e - mean(e)|^2,

    alpha mean|e - e_hat|^2 / var(e)

`GhostGrads` (Jermyn & Templeton 2024, "Ghost grads"; and the improvements in Google DeepMind's progress update of
April 2024): dead latents with a smooth activation g reconstruct it, scaled to half of its length.

    e_hat = g(z_dead) @ W_dec        s = |e| / (2 |e_hat|) for each token, detached
    ghost = mean|e - s e_hat|^2      times the reconstruction loss over itself, detached (`match_reconstruction`)
                                     times the dead fraction (`by_dead_fraction`)

    GhostGrads.original()          exp(z), matched; the loss jumps when the first latent dies
    GhostGrads.with_rescaling()    exp(min(z, 0)), matched, times the dead fraction; as good as resampling
    either without matching: the field match_reconstruction=False

Sharp edges: the losses cost nothing while no latent is dead (`lax.cond`), but under vmap both branches are always
computed; a loop that trains an ensemble of dictionaries can pass dead=None while no member has a dead latent.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures.losses import mean_squared_norm
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.dead_latents.counters import check_tokens
from mechjax.sae.ops import sparse
from mechjax.sae.ops.matmul import product


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxK:
  """The largest dead latents reconstruct the error.

  Attributes:
    alpha: weight of the loss.
    k: number of dead latents per token; None for half the width of the target.
    after_tokens: number of tokens without firing after which a latent is dead.
  """

  alpha: float = 1 / 32
  k: int | None = None
  after_tokens: int = 10_000_000

  def __post_init__(self) -> None:
    check_number(self, 'alpha')
    if self.k is not None:
      check_whole(self, 'k')
    check_field(self, 'alpha', self.alpha >= 0, 'at least 0')
    check_field(self, 'k', self.k is None or self.k >= 1, 'at least 1, or None')
    check_tokens(self)

  def loss(
    self,
    dead_M: jax.Array,
    z_BxM: jax.Array,
    W_dec: jax.Array,
    error_BxE: jax.Array,
    reconstruction: jax.Array,
    matmuls: str = 'float32',
  ) -> jax.Array:
    """The weighted loss; arguments as in `AuxLoss.loss`. Weights of latents multiply their activations.
    `reconstruction` is not used."""
    width, d = W_dec.shape
    k = min(max(d // 2, 1) if self.k is None else self.k, width)
    weights_M = dead_M.astype(z_BxM.dtype)
    values, indices = sparse.top_k(jnp.where(weights_M > 0, z_BxM, -jnp.inf), k)
    values = jax.nn.relu(values) * weights_M[indices]
    e_hat = product(sparse.densify(values, indices, width), W_dec, matmuls)
    variance = mean_squared_norm(error_BxE - jnp.mean(error_BxE, 0))
    left = mean_squared_norm(error_BxE - e_hat)
    return jnp.where(variance > 0, self.alpha * left / jnp.where(variance > 0, variance, 1), 0)


EXPONENTS = {'exp': lambda z: z, 'exp_of_negative': lambda z: jnp.minimum(z, 0)}
"""Argument of exp, by the name of the activation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GhostGrads:
  """All dead latents reconstruct the error, through a smooth activation.

  Attributes:
    activation: activation of dead latents, 'exp' or 'exp_of_negative', which is exp(min(z, 0)).
    match_reconstruction: whether the loss is scaled to the size of the reconstruction loss.
    by_dead_fraction: whether it is multiplied by the fraction of dead latents.
    after_tokens: number of tokens without firing after which a latent is dead.
  """

  activation: str
  match_reconstruction: bool
  by_dead_fraction: bool
  after_tokens: int = 10_000_000

  def __post_init__(self) -> None:
    check_field(self, 'activation', self.activation in EXPONENTS, f'one of {[*EXPONENTS]}')
    check_tokens(self)

  @classmethod
  def original(cls, after_tokens: int = 10_000_000) -> GhostGrads:
    """The variant that was published first."""
    return cls(
      activation='exp', match_reconstruction=True, by_dead_fraction=False, after_tokens=after_tokens
    )

  @classmethod
  def with_rescaling(
    cls, after_tokens: int = 10_000_000, match_reconstruction: bool = True
  ) -> GhostGrads:
    """The variant with a bounded activation, multiplied by the dead fraction."""
    return cls(
      activation='exp_of_negative',
      match_reconstruction=match_reconstruction,
      by_dead_fraction=True,
      after_tokens=after_tokens,
    )

  def loss(
    self,
    dead_M: jax.Array,
    z_BxM: jax.Array,
    W_dec: jax.Array,
    error_BxE: jax.Array,
    reconstruction: jax.Array,
    matmuls: str = 'float32',
  ) -> jax.Array:
    """The loss; arguments as in `AuxLoss.loss`, with a mask."""
    e_hat = product(self._ghosts(dead_M, z_BxM), W_dec, matmuls)
    length = jnp.linalg.norm(lax.stop_gradient(e_hat), axis=-1, keepdims=True)
    half = jnp.linalg.norm(error_BxE, axis=-1, keepdims=True) / 2
    total = mean_squared_norm(error_BxE - e_hat * half / jnp.where(length > 0, length, 1))
    if self.match_reconstruction:
      fixed = lax.stop_gradient(total)
      total = total * reconstruction / jnp.where(fixed > 0, fixed, 1)
    return total * jnp.mean(dead_M, dtype=total.dtype) if self.by_dead_fraction else total

  def _ghosts(self, dead_M: jax.Array, z_BxM: jax.Array) -> jax.Array:
    """Activations of dead latents, divided by the largest one of each token.

    A constant factor per token cancels in s e_hat, so the loss and its gradient are those of the activations
    themselves, whose exp overflows float32 at a pre-activation of 88 and vanishes at one of -104.
    """
    exponents = EXPONENTS[self.activation](jnp.where(dead_M, z_BxM, 0))
    largest = jnp.max(exponents, -1, keepdims=True, where=dead_M, initial=-jnp.inf)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    return jnp.where(dead_M, jnp.exp(jnp.where(dead_M, exponents - largest, 0)), 0)
