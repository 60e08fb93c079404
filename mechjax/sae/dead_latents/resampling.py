"""Resampling: dead latents are reinitialised to point at inputs that are reconstructed badly.

For each dead latent an input is drawn with a probability proportional to its squared loss. The latent's decoder row
becomes the direction of the target of that input, its encoder column the direction of the input with `encoder_scale`
times the mean length of the live columns. Its biases and thresholds return to their initial values, and its optimiser
state is reset (Bricken et al. 2023, appendix on resampling). The learning rate then falls to a tenth and returns along
a cosine, because Adam without accumulated state takes full steps:

    dead = tokens_since_fired >= settings.after_tokens
    params = settings.resample(sae, params, key, x, output.error, dead)
    state = reset_optimiser(optimiser, state, sae, params, dead)
    rate = schedule(step) * settings.rate(step - step_of_last_resampling)

Everything is a `where` over all latents, so it works inside jit and vmap; without dead latents nothing changes.

Sharp edges: directions are those of x - b_dec, the input of the encoder, whereas the original used x; with x, and
inputs far from the origin, all resampled latents would point at the mean. In a transcoder the encoder uses x, and the
decoder the target minus b_dec and the skip. Reset the counters of dead latents too, or the latents are resampled again
the next time.
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
  """Settings of resampling.

  Attributes:
    after_tokens: number of tokens without firing after which a latent is dead.
    encoder_scale: length of a new encoder column, in units of the mean length of the live columns.
    min_rate: factor of the learning rate right after resampling.
    rewarm_steps: number of steps until the factor is 1 again.
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
    """Factor of the learning rate, `steps_since` steps after resampling."""
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
    """Replaces the dead latents in the parameters.

    Args:
      sae: the dictionary.
      params: its parameters.
      key: a random key.
      x: a batch of activations, [B, D].
      error: target minus reconstruction of that batch, [B, E].
      dead: mask of dead latents, bool [M].
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
  """Sets the optimiser state of dead latents to zero.

  Args:
    optimiser: the optimiser of the state.
    state: any optax state; the parts with the structure of the parameters are found automatically.
    sae: the dictionary.
    params: its parameters.
    dead: mask of dead latents, bool [M].
  """

  def forget(value: jax.Array, which: jax.Array) -> jax.Array:
    return jnp.where(which, jnp.zeros((), value.dtype), value)

  return optax.tree_map_params(optimiser, forget, state, _of_latents(sae, params, dead))


def _of_latents(sae: Architecture, params: Params, dead: jax.Array) -> dict[str, jax.Array]:
  """Mask of the elements that belong to dead latents, for each parameter."""
  own = dict.fromkeys(sae.PER_LATENT, dead)
  own |= {'W_enc': dead, 'W_dec': dead[:, None]}
  return {name: own.get(name, jnp.zeros((), bool)) for name in params}
