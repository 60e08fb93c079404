"""Settings of the optimiser and of its schedules: the training settings that do not belong to a dictionary.

Two schedules, whose factors a compiled step computes from its number, and the update rule:

    learning rate      rises along a cosine from `warm_up_from` of it, is constant, and falls linearly to zero
    sparsity           the coefficient of the penalty rises linearly from 0, so that latents first learn to reconstruct
    optimiser          Adam, on gradients orthogonal to decoder rows (`mechjax.sae.ops.unit_rows`)

(Rajamanoharan et al. 2024 and Lieberum et al. 2024, "Gemma Scope", whose constants are the defaults.) With b1 = 0,
as there, Adam's first moment is the gradient itself and is not stored, which saves a third of the training memory.

Steps are counted from 0: `rate(n)` is the factor for the update after n others.

Sharp edges: `optimiser` does not include the learning rate, because members of an ensemble can have different ones
after resampling; `rate` times its updates is subtracted from the parameters. Optax raises floats to integer powers, so
its update always runs under JAX's standard dtype promotion.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.ops import unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
  """Settings of the optimiser and of its schedules.

  Attributes:
    steps: total number of updates.
    learning_rate: learning rate of Adam, after the warm-up.
    warm_up_steps: updates until the learning rate is reached; 0 for no warm-up.
    warm_up_from: factor of the learning rate at step 0.
    decay_steps: updates at the end with a falling learning rate, which would be zero at step `steps`.
    sparsity_warm_up_steps: updates in which the sparsity coefficient rises from 0; 0 for no warm-up.
    b1: decay of Adam's mean of gradients.
    b2: decay of Adam's mean of squared gradients.
    eps: added to the root of Adam's mean of squared gradients.

  Raises:
    SAEError: a value is out of range, or the warm-up longer than the training; the message contains it.
  """

  steps: int
  learning_rate: float = 3e-4
  warm_up_steps: int = 1_000
  warm_up_from: float = 0.1
  decay_steps: int = 0
  sparsity_warm_up_steps: int = 10_000
  b1: float = 0.0
  b2: float = 0.999
  eps: float = 1e-8

  def __post_init__(self) -> None:
    check_whole(self, 'steps', 'warm_up_steps', 'decay_steps', 'sparsity_warm_up_steps')
    check_number(self, 'learning_rate', 'warm_up_from', 'b1', 'b2', 'eps')
    check_field(self, 'steps', self.steps >= 1, 'at least 1')
    for name in ('learning_rate', 'eps'):
      check_field(self, name, getattr(self, name) > 0, 'positive')
    for name in ('warm_up_steps', 'sparsity_warm_up_steps'):
      check_field(self, name, getattr(self, name) >= 0, 'at least 0')
    check_field(self, 'warm_up_from', 0 <= self.warm_up_from <= 1, 'in [0, 1]')
    valid = 0 <= self.decay_steps <= self.steps
    check_field(self, 'decay_steps', valid, f'from 0 to steps={self.steps}')
    if self.warm_up_steps > self.steps:
      raise SAEError(
        f'warm_up_steps={self.warm_up_steps} of a training of steps={self.steps}',
        cause='the learning rate would never be reached; the default is for long trainings',
        hint=f'warm_up_steps={self.steps // 20}',
      )
    for name in ('b1', 'b2'):
      check_field(self, name, 0 <= getattr(self, name) < 1, 'in [0, 1)')

  def rate(self, step: jax.typing.ArrayLike) -> jax.Array:
    """Factor of the learning rate, float32; `step` is an int or an int array."""
    at = jnp.asarray(step, jnp.float32)
    warm = jnp.clip(at / self.warm_up_steps, 0, 1) if self.warm_up_steps else 1.0
    left = jnp.clip((self.steps - at) / self.decay_steps, 0, 1) if self.decay_steps else 1.0
    rising = self.warm_up_from + (1 - self.warm_up_from) * (1 - jnp.cos(jnp.pi * warm)) / 2
    return jnp.asarray(rising * left, jnp.float32)

  def sparsity(self, step: jax.typing.ArrayLike, throughout: bool = False) -> jax.Array:
    """Factor of the sparsity coefficient, float32.

    Args:
      step: an int or an int array.
      throughout: whether it rises over all steps and not over `sparsity_warm_up_steps`.
    """
    rising = self.steps if throughout else self.sparsity_warm_up_steps
    if not rising:
      return jnp.ones((), jnp.float32)
    return jnp.clip(jnp.asarray(step, jnp.float32) / rising, 0, 1)

  def optimiser(self, unit_length: bool = True) -> optax.GradientTransformation:
    """Adam without the learning rate.

    Args:
      unit_length: whether rows of the decoder have unit length, and gradients are made orthogonal to them before.
    """
    if self.b1:
      adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
    else:
      adam = optax.scale_by_rms(
        decay=self.b2, eps=self.eps, eps_in_sqrt=False, bias_correction=True
      )
    parts = [unit_rows.orthogonal_to_decoder()] if unit_length else []
    return _with_standard_promotion(optax.chain(*parts, adam))


def _with_standard_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """The same transformation, with updates under JAX's standard dtype promotion."""

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion('standard'):
      return inner.update(grads, state, params)

  return optax.GradientTransformation(inner.init, update)
