"""What a loss returns, what a loss on dead latents has to offer, and the sums that losses are made of.

`architectures.base` adds them up: reconstruction, sparsity, and a loss on latents that are dead or too rare.

Letters in shapes: B tokens, E width of the target, M latents.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.ops.unit_rows import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossOutput:
  """Auxiliary output of a loss. Parts that a caller does not use cost nothing under jit.

  Attributes:
    parts: scalars whose sum is the loss, with their weights included: 'reconstruction', 'sparsity', 'aux' (for dead
      latents), and parts that an architecture adds.
    latents: the activations during training, [B, M] or `Sparse`; `sparse.firings` counts the active ones.
    error: target minus reconstruction, [B, E].
    observed: new values of parameters that have no gradient and that the loss itself computes, by name.
  """

  parts: dict[str, jax.Array]
  latents: jax.Array | Sparse
  error: jax.Array
  observed: Params = dataclasses.field(default_factory=dict)


@runtime_checkable
class AuxLoss(Protocol):
  """A loss that acts on dead latents; `mechjax.sae.dead_latents` has implementations."""

  @property
  def after_tokens(self) -> int:
    """Number of tokens without firing after which a latent is dead."""

  def loss(
    self,
    dead_M: jax.Array,
    z_BxM: jax.Array,
    W_dec: jax.Array,
    error_BxE: jax.Array,
    reconstruction: jax.Array,
    matmuls: str = 'float32',
  ) -> jax.Array:
    """The weighted loss, a scalar; `AuxK.loss` documents the arguments."""


@runtime_checkable
class DensityLoss(AuxLoss, Protocol):
  """A loss on latents that are active too rarely: the parameter `density` has a running mean, and a weight in [0, 1]
  for each latent replaces the mask of dead latents."""

  def update_density(self, density_M: jax.Array, latents: jax.Array | Sparse) -> jax.Array:
    """Share of the tokens on which each latent is active, after one more batch, [M]."""

  def shortfall(self, density_M: jax.Array) -> jax.Array:
    """Weight of each latent, [M]; 0 for one that is active as often as expected."""


def mean_squared_norm(error_BxE: jax.Array) -> jax.Array:
  """Mean over tokens of |error|^2."""
  return jnp.mean(jnp.sum(jnp.square(error_BxE), -1))


def total_per_token(x_BxM: jax.Array) -> jax.Array:
  """Mean over tokens of the sum over latents."""
  # Sums over tokens first; the barrier keeps this order: XLA on CPU then needs no array for the summands.
  return jnp.sum(lax.optimization_barrier(jnp.sum(x_BxM, 0))) / len(x_BxM)
