"""p-annealing: the L1 penalty becomes a penalty that is ever nearer to the number of active latents.

An L1 penalty shrinks large activations as much as small ones. With an exponent p below 1 the penalty of an activation
rises steeply near 0 and is flat beyond, but training with it from the start gets stuck; so p falls while a dictionary
trains (Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board
Game Models", arXiv 2408.00113, equation 13):

    penalty    sparsity * factor * sum_i ((f_i + eps)^p - eps^p)           p = 1: the L1 norm
    p          1 until step `start`, then falls in `updates` equal jumps to `p_end` at step `stop`
    factor     1; at each jump times mean(penalty with p) / mean(penalty with the next p) of the last `window` batches,
               so that the penalty does not jump

    ReLU(d_in=768, width=6144, sparsity=1e-3, annealing=PAnnealing(start=10_000, stop=90_000))

It is a setting of `ReLU`, and of `Gated`, where it acts on ReLU(pi). eps bounds the slope at 0, which is infinite in
the paper. The equation has the sum of powers, and this is it; public code takes the p-norm, its 1/p-th power.

Its state is three parameters without a gradient: the number of batches, the factor, and the penalties of the last
batches. A checkpoint has them, so a resumed run continues exactly; files of dictionaries do not.

Sharp edges: eps is in units of activations and meant for E|x|^2 = 1. A step is a batch of `loss`, and it counts only if
`LossOutput.observed` replaces the parameters, as `training` does.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures.base import Architecture
from mechjax.sae.architectures.losses import total_per_token
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.ops.unit_rows import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class PAnnealing:
  """Schedule of the exponent of a sparsity penalty.

  Attributes:
    start: number of steps until p begins to fall.
    stop: number of steps until p is `p_end`.
    p_end: the last exponent, in (0, 1].
    updates: number of jumps from 1 to `p_end`.
    window: number of batches before a jump over which the penalties are averaged.
    epsilon: eps, activation below which the slope of the penalty is bounded.

  Raises:
    SAEError: a value is out of range; the message contains it.
  """

  start: int
  stop: int
  p_end: float = 0.2
  updates: int = 10
  window: int = 10
  epsilon: float = 1e-3

  def __post_init__(self) -> None:
    check_whole(self, 'start', 'stop', 'updates', 'window')
    check_number(self, 'p_end', 'epsilon')
    check_field(self, 'start', self.start >= 0, 'at least 0')
    check_field(self, 'p_end', 0 < self.p_end <= 1, 'in (0, 1]')
    check_field(self, 'epsilon', self.epsilon > 0, 'positive')
    for name in ('updates', 'window'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    needed = self.start + self.updates * self.window
    expected = (
      f'at least start + updates * window = {needed}, so that every jump has its own batches'
    )
    check_field(self, 'stop', self.stop >= needed, expected)
    check_field(self, 'stop', self.updates * self.stop < 2**31, f'below 2**31 / {self.updates}')

  def init(self) -> Params:
    """Initial state."""
    return {
      'anneal_step': jnp.zeros((), jnp.float32),
      'anneal_factor': jnp.ones((), jnp.float32),
      'anneal_history': jnp.zeros((2, self.window), jnp.float32),
    }

  def exponent(self, step: jax.typing.ArrayLike) -> jax.Array:
    """p in step number `step`, counted from 0; float32."""
    return self._exponent_after(self._jumps(jnp.asarray(step, jnp.int32)))

  def penalty(self, params: Params, f: jax.Array) -> tuple[jax.Array, Params]:
    """Mean over tokens of factor * sum_i ((f_i + eps)^p - eps^p), and the state after this batch.

    Args:
      params: parameters, with the state.
      f: activations, [B, M], at least 0.
    """
    step = lax.stop_gradient(params['anneal_step']).astype(jnp.int32)
    factor = lax.stop_gradient(params['anneal_factor']).astype(f.dtype)
    jumps = self._jumps(step)
    now = total_per_token(self._power(f, self._exponent_after(jumps)))
    fixed = lax.stop_gradient(f)
    following = total_per_token(self._power(fixed, self._exponent_after(jumps + 1)))
    history = lax.stop_gradient(params['anneal_history'])
    both = lax.stop_gradient(jnp.stack([now, following])).astype(history.dtype)
    history = history.at[:, step % self.window].set(both)
    mean_now, mean_following = jnp.mean(history, 1)
    ratio = mean_now / jnp.where(mean_following > 0, mean_following, 1)
    jumping = (self._jumps(step + 1) > jumps) & (mean_following > 0)
    observed = {
      'anneal_step': (step + 1).astype(jnp.float32),
      'anneal_factor': jnp.where(jumping, factor * ratio.astype(f.dtype), factor).astype(
        jnp.float32
      ),
      'anneal_history': history,
    }
    return factor * now, observed

  def _jumps(self, step: jax.Array) -> jax.Array:
    """Number of jumps before a step, int."""
    passed = jnp.clip(step - self.start, 0, self.stop - self.start)
    return passed * self.updates // (self.stop - self.start)

  def _exponent_after(self, jumps: jax.Array) -> jax.Array:
    share = jnp.minimum(jumps, self.updates).astype(jnp.float32) / self.updates
    return 1 - (1 - self.p_end) * share

  def _power(self, f: jax.Array, p: jax.Array) -> jax.Array:
    p, epsilon = p.astype(f.dtype), jnp.asarray(self.epsilon, f.dtype)
    raised = jnp.exp(p * jnp.log(f + epsilon)) - jnp.exp(p * jnp.log(epsilon))
    return jnp.where(f > 0, raised, 0)


def penalty(annealing: PAnnealing | None, params: Params, f: jax.Array) -> tuple[jax.Array, Params]:
  """The penalty of activations f [B, M] without its coefficient, and the state; the L1 norm without annealing."""
  return (total_per_token(f), {}) if annealing is None else annealing.penalty(params, f)


def check_annealing(sae: Architecture) -> None:
  """Checks the field `annealing` of a dictionary.

  Raises:
    SAEError: it is neither a `PAnnealing` nor None.
  """
  annealing = getattr(sae, 'annealing', None)
  valid = annealing is None or isinstance(annealing, PAnnealing)
  check_field(sae, 'annealing', valid, 'PAnnealing(...), or None')
