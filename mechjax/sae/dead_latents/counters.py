"""Which latents are dead: the number of tokens since each last fired.

Tokens are counted rather than steps, because a number of steps means nothing without the batch size:

    tokens_since_fired = never_fired(width)
    tokens_since_fired = tokens_since(tokens_since_fired, firings(outcome.latents), n_tokens=len(x))   after each step
    loss, outcome = sae.loss(params, x, dead=tokens_since_fired >= after_tokens)

Sharp edge: counts stop at 2**30 tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mechjax.sae.checks import check_field, check_whole

MAX_TOKENS = 2**30


def init_counters(width: int) -> jax.Array:
  """The counters at the start: as if all latents had just fired, int32 [M]."""
  return jnp.zeros(width, jnp.int32)


def update_counters(since_M: jax.Array, firings_M: jax.Array, n_tokens: int) -> jax.Array:
  """Tokens since each latent last fired, after another batch.

  Args:
    since_M: the same before.
    firings_M: on how many tokens of the batch each latent fired.
    n_tokens: size of the batch.
  """
  waited = jnp.minimum(since_M, MAX_TOKENS - n_tokens) + n_tokens
  return jnp.where(firings_M > 0, 0, waited).astype(jnp.int32)


def check_tokens(owner: Any, name: str = 'after_tokens') -> None:
  """Checks a field of a dataclass that is compared with counters.

  Raises:
    SAEError: it does not fit into them.
  """
  check_whole(owner, name)
  good = 1 <= getattr(owner, name) < MAX_TOKENS
  check_field(owner, name, good, f'from 1 to {MAX_TOKENS - 1}')
