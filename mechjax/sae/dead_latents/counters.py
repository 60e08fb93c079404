"""Detection of dead latents: counters of the tokens since each latent last fired.

Tokens are counted instead of steps, because a number of steps has no meaning without the batch size:

    tokens_since_fired = init_counters(width)
    loss, output = sae.loss(params, x, dead=tokens_since_fired >= after_tokens)
    tokens_since_fired = update_counters(tokens_since_fired, firings(output.latents), n_tokens=len(x))

Sharp edge: counters saturate at 2**30 tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mechjax.sae.checks import check_field, check_whole

MAX_TOKENS = 2**30


def init_counters(width: int) -> jax.Array:
  """Initial counters, as if all latents had just fired, int32 [M]."""
  return jnp.zeros(width, jnp.int32)


def update_counters(
  tokens_since_fired_M: jax.Array, firings_M: jax.Array, n_tokens: int
) -> jax.Array:
  """Tokens since each latent last fired, after one more batch.

  Args:
    tokens_since_fired_M: the counters before the batch.
    firings_M: number of tokens of the batch on which each latent fired.
    n_tokens: number of tokens of the batch.
  """
  silent = jnp.minimum(tokens_since_fired_M, MAX_TOKENS - n_tokens) + n_tokens
  return jnp.where(firings_M > 0, 0, silent).astype(jnp.int32)


def check_tokens(owner: Any, name: str = 'after_tokens') -> None:
  """Checks a field of a dataclass that is compared with the counters.

  Raises:
    SAEError: the value is outside the range of the counters.
  """
  check_whole(owner, name)
  valid = 1 <= getattr(owner, name) < MAX_TOKENS
  check_field(owner, name, valid, f'from 1 to {MAX_TOKENS - 1}')
