"""A loss for latents that are active less often than Zipf's law expects: aux_zipf.

AuxK acts on latents that are dead, all or nothing, and after millions of tokens. `AuxZipf` acts on every latent in the
proportion to which it is too rare (Ayonrinde 2024, arXiv 2411.02124; the weights are ours, as that paper states none):

    density      running mean of the share of tokens on which each latent is active
    expected     of the latent of rank i, sum of all densities * (i + beta)^(-alpha) / sum_j (j + beta)^(-alpha)
    shortfall    max(1 - density / expected, 0): 1 for a dead latent, 0 for one that is active as often as expected
    loss         AuxK among latents with a shortfall, their activations times their shortfalls

    BatchTopK(d_in=768, width=6144, k=32, aux_loss=AuxZipf(zipf_alpha=0.7, zipf_beta=3.0))

With shortfalls of 0 and 1 it is AuxK. The densities are the parameter `density`, which has no gradient; checkpoints
have it, and files of dictionaries do not.

Sharp edge: `after_tokens` counts for the metric 'dead' alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mechjax.sae.checks import check_field, check_number
from mechjax.sae.dead_latents.losses import AuxK
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.ops.zipf import zipf_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxZipf(AuxK):
  """The largest latents that are active too rarely reconstruct the error.

  Attributes:
    zipf_alpha: exponent of the expected densities; 0 expects all latents to be equally frequent.
    zipf_beta: shift of the ranks, above -1.
    decay: decay of the running means of densities, per step.
  """

  zipf_alpha: float = 1.0
  zipf_beta: float = 0.0
  decay: float = 0.99

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number(self, 'zipf_alpha', 'zipf_beta', 'decay')
    check_field(self, 'zipf_alpha', self.zipf_alpha >= 0, 'at least 0')
    check_field(self, 'zipf_beta', self.zipf_beta > -1, 'above -1')
    check_field(self, 'decay', 0 <= self.decay < 1, 'in [0, 1)')

  def update_density(self, density_M: jax.Array, latents: jax.Array | Sparse) -> jax.Array:
    """Running mean of the densities; see `DensityLoss.update_density`."""
    n_tokens = len(latents.values if isinstance(latents, Sparse) else latents)
    share = sparse.firings(latents).astype(density_M.dtype) / n_tokens
    return self.decay * density_M + (1 - self.decay) * share

  def shortfall(self, density_M: jax.Array) -> jax.Array:
    """max(1 - density / expected density, 0) of each latent; 0 for all before the first batch."""
    weights = jnp.asarray(
      zipf_weights(len(density_M), self.zipf_alpha, self.zipf_beta), density_M.dtype
    )
    order = jnp.argsort(-density_M)
    expected = jnp.zeros_like(density_M).at[order].set(jnp.sum(density_M) * weights)
    ratio = density_M / jnp.where(expected > 0, expected, 1)
    return jnp.where(expected > 0, jax.nn.relu(1 - ratio), 0)
