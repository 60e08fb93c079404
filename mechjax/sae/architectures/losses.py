"""The output of a loss, the protocols of losses on dead and on rare latents, and sums that losses are made of.

`architectures.totals` adds the parts up: reconstruction, sparsity, and a loss on latents that are dead or too rare,
which is the field `aux_loss` of a dictionary. Any object with the methods below is one; `mechjax.sae.dead_latents` has
`AuxK`, `GhostGrads` (both `AuxLoss`) and `AuxZipf` (`DensityLoss`).

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
  """A loss that acts on dead latents."""

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
    """The weighted loss, a scalar.

    Args:
      dead_M: mask of dead latents, bool; for a `DensityLoss` its `shortfall`, floating point.
      z_BxM: pre-activations; of a crosscoder, times the lengths of directions.
      W_dec: directions, [M, E].
      error_BxE: error of the reconstruction, a constant.
      reconstruction: reconstruction loss, a constant scalar.
      matmuls: the precision of products (`mechjax.sae.ops.matmul`).
    """


@runtime_checkable
class DensityLoss(AuxLoss, Protocol):
  """A loss on latents that are active too rarely, each with a weight in [0, 1] in place of the mask of dead latents.

  The running means of densities are the parameter `density`, which has no gradient and which only training has.
  """

  def update_density(self, density_M: jax.Array, latents: jax.Array | Sparse) -> jax.Array:
    """Running mean of the share of tokens on which each latent is active, after one more batch.

    Args:
      density_M: the mean before the batch; initially 0.
      latents: activations of the batch, [B, M] or `Sparse`.
    """

  def shortfall(self, density_M: jax.Array) -> jax.Array:
    """Weight of each latent, [M]; 0 for one that is active as often as expected, 1 for one that never is."""


def mean_squared_norm(error_BxE: jax.Array) -> jax.Array:
  """Mean over tokens of |error|^2."""
  return jnp.mean(jnp.sum(jnp.square(error_BxE), -1))


def total_per_token(x_BxM: jax.Array) -> jax.Array:
  """Mean over tokens of the sum over latents."""
  # Sums over tokens first; the barrier keeps this order: XLA on CPU then needs no array for the summands.
  return jnp.sum(lax.optimization_barrier(jnp.sum(x_BxM, 0))) / len(x_BxM)
