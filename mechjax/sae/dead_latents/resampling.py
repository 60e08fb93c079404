"""Resampling: dead latents start again, pointing at what is reconstructed badly.

For each dead latent an input is drawn with a probability proportional to its squared loss; the latent's decoder row
becomes the direction of what should have been reconstructed there, its encoder column the direction of the input at
`encoder_scale` times the mean length of the living columns, its biases and thresholds what they were at first, and
the optimiser forgets it (Bricken et al. 2023, appendix on resampling). The learning rate then falls to a tenth and
returns along a cosine, because Adam without memory takes full steps:

    dead = tokens_since_fired >= settings.after_tokens
    params = settings.resample(sae, params, key, x, output.error, dead)
    state = reset_optimiser(optimiser, state, sae, params, dead)
    rate = schedule(step) * settings.rate(step - step_of_last_resampling)

Everything is a `where` over all latents, so it may stand inside jit and vmap; without dead latents nothing changes.

Sharp edges: directions are taken from x - b_dec, which is what the encoder sees, where the original took x; with
inputs far from the origin all resampled latents would otherwise point at the mean. In a transcoder the encoder takes
x, and the decoder what the target has beyond b_dec and the skip. Reset the counters of dead latents too, or they are
resampled again at the next occasion.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mechjax.sae.architectures.base import Architecture
from mechjax.sae.checks import check_field
from mechjax.sae.dead_latents.counters import check_tokens
from mechjax.sae.ops.unit_rows import Params, unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resampling:
  """How dead latents are resampled.

  Attributes:
    after_tokens: without firing, and a latent is dead.
    encoder_scale: length of a new encoder column, in mean lengths of the living ones.
    min_rate: factor of the learning rate right after resampling.
    rewarm_steps: until the factor is 1 again.
  """

  after_tokens: int = 10_000_000
  encoder_scale: float = 0.2
  min_rate: float = 0.1
  rewarm_steps: int = 1_000

  def __post_init__(self) -> None:
    check_tokens(self)
    check_field(self, 'encoder_scale', self.encoder_scale > 0, 'positive')
    check_field(self, 'min_rate', 0 <= self.min_rate <= 1, 'in [0, 1]')
    check_field(self, 'rewarm_steps', self.rewarm_steps >= 1, 'at least 1')

  def rate(self, steps_since: jax.Array) -> jax.Array:
    """The factor of the learning rate, so many steps after resampling."""
    done = jnp.clip(steps_since / self.rewarm_steps, 0.0, 1.0)
    return self.min_rate + (1 - self.min_rate) * (1 - jnp.cos(jnp.pi * done)) / 2

  def resample(
    self,
    sae: Architecture,
    params: Params,
    key: jax.Array,
    x: jax.Array,
    error: jax.Array,
    dead: jax.Array,
    y: jax.Array | None = None,
  ) -> Params:
    """Parameters in which dead latents are new.

    Args:
      sae: the dictionary.
      params: its parameters.
      key: a random key.
      x: a batch of activations, [B, D].
      error: target minus reconstruction of that batch, [B, E].
      dead: bool [M].
      y: the targets of a transcoder, [B, E].
    """
    loss = jnp.sum(jnp.square(error), -1)
    drawn = jax.random.categorical(key, 2 * jnp.log(loss), shape=(sae.width,))
    outputs = sae.remaining_target(params, x, y)
    inputs = x if sae.d_out else outputs
    lengths = jnp.linalg.norm(params['W_enc'], axis=0)
    length = self.encoder_scale * jnp.mean(lengths, where=~dead | dead.all())
    new = {name: jnp.full_like(params[name], value) for name, value in sae.initial_values().items()}
    new |= {'W_dec': unit_rows(outputs[drawn]), 'W_enc': length * unit_rows(inputs[drawn]).T}
    which = _of_latents(sae, params, dead)
    return params | {name: jnp.where(which[name], new[name], params[name]) for name in new}


def reset_optimiser(
  optimiser: optax.GradientTransformation,
  state: Any,
  sae: Architecture,
  params: Params,
  dead: jax.Array,
) -> Any:
  """The state of an optimiser with zeros wherever it remembers something of dead latents.

  Args:
    optimiser: whose state it is.
    state: any optax state; whatever has the structure of the parameters is found in it.
    sae: the dictionary.
    params: its parameters.
    dead: bool [M].
  """

  def forget(value: jax.Array, which: jax.Array) -> jax.Array:
    return jnp.where(which, jnp.zeros((), value.dtype), value)

  return optax.tree_map_params(optimiser, forget, state, _of_latents(sae, params, dead))


def _of_latents(sae: Architecture, params: Params, dead: jax.Array) -> dict[str, jax.Array]:
  """For each parameter which of its numbers belong to dead latents."""
  own = dict.fromkeys(sae.PER_LATENT, dead)
  own |= {'W_enc': dead, 'W_dec': dead[:, None]}
  return {name: own.get(name, jnp.zeros((), bool)) for name in params}
