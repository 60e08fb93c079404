"""The last step of a loss: the part for dead or rare latents, and the sum of all parts.

    return total_loss(self, params, {'reconstruction': ..., 'sparsity': ...}, f, error, lambda: z, dead)

A loss for dead latents is computed only if a latent is dead (`lax.cond`), with the error and the reconstruction loss
as constants. One for rare latents (`DensityLoss`) has a weight for each latent in place of the mask, from the running
mean of their densities, and returns its new value as `LossOutput.observed`.

Letters in shapes: B tokens, E width of the target, M latents.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures.base import Architecture, Params
from mechjax.sae.architectures.crosscoder_parts import make_comparable
from mechjax.sae.architectures.losses import DensityLoss, LossOutput
from mechjax.sae.ops.sparse import Sparse


def total_loss(
  sae: Architecture,
  params: Params,
  parts: dict[str, jax.Array],
  latents: jax.Array | Sparse,
  error: jax.Array,
  z: Callable[[], jax.Array],
  dead: jax.Array | None,
  observed: Params | None = None,
) -> tuple[jax.Array, LossOutput]:
  """Adds the part for dead latents, and sums the parts.

  Args:
    sae: the dictionary.
    params: its parameters.
    parts: the other parts.
    latents: the activations, [B, M] or `Sparse`.
    error: target minus reconstruction, [B, E].
    z: function that returns the pre-activations that decide which latents are active, [B, M]; called only if a
      latent is dead.
    dead: mask of dead latents, bool [M], or None to omit the part.
    observed: new values of parameters without a gradient.
  """
  aux_loss = sae.aux_loss
  observed = observed or {}
  aux = jnp.zeros((), error.dtype)
  if isinstance(aux_loss, DensityLoss):
    density = params['density']
    new = aux_loss.update_density(density, latents)
    observed = observed | {'density': new.astype(density.dtype)}
    dead = None if dead is None else lax.stop_gradient(aux_loss.shortfall(density))
  if aux_loss is not None and dead is not None:
    fixed, reconstruction = lax.stop_gradient((error, parts['reconstruction']))

    def revive() -> jax.Array:
      ranked, W_dec = make_comparable(z(), params['W_dec'], sae.parts)
      return aux_loss.loss(dead, ranked, W_dec, fixed, reconstruction, sae.matmuls)

    aux = lax.cond(dead.any(), revive, lambda: aux)
  parts = {**parts, 'aux': aux}
  total = sum(parts.values(), jnp.zeros((), error.dtype))
  return total, LossOutput(parts, latents, error, observed)
