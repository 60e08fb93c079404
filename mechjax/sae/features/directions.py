"""What the directions of a dictionary say without any text.

A latent adds its row of W_dec to the site, so what it does to the prediction, as far as it does so directly, is that
row through the unembedding. A constant added to all logits changes no probability, so effects are given against their
mean over the vocabulary. And directions are compared by their cosine: of decoder rows (what two latents write) and of
encoder columns (what they react to).

Sharp edges. Effects are for one unit of activation. What lies between the site and the logits counts only as far as
`unembed` has it: the final norm is no linear map, and fixing its scale or leaving it out are both usual.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.ops.unit_rows import unit_rows

CHUNK = 256


class Ranked(NamedTuple):
  """The first few of something, the best first.

  Attributes:
    ids: which, int [L, n].
    values: float32 [L, n].
  """

  ids: np.ndarray
  values: np.ndarray


def logit_effects(
  directions: Any, unembed: Callable[[jax.Array], jax.Array], n: int
) -> tuple[Ranked, Ranked]:
  """The tokens whose logits directions raise and lower most, against the mean over the vocabulary.

  Args:
    directions: [L, E].
    unembed: directions [k, E] to logits [k, V]; linear, and jitted if it should be.
    n: how many tokens.

  Returns:
    The tokens raised most, and those lowered most.

  Raises:
    SAEError: logits of another shape, or that are no numbers.
  """
  directions = jnp.asarray(directions)
  parts = [
    _extremes(_logits(unembed, directions[low : low + CHUNK]), n)
    for low in range(0, len(directions), CHUNK)
  ]
  raised, lowered = (Ranked(*map(np.concatenate, zip(*side))) for side in zip(*parts))
  return raised, lowered


def nearest(vectors: Any, rows: Any, n: int) -> Ranked:
  """The vectors that point most nearly where some of them point.

  Args:
    vectors: [M, E]; one of length 0 is near none.
    rows: which of them are asked about, int [L].
    n: how many neighbours, itself not among them; all others where there are fewer.

  Returns:
    Their indices, and their cosines.
  """
  vectors = jnp.asarray(vectors)
  found = _nearest(vectors, jnp.asarray(rows, jnp.int32), min(n, len(vectors) - 1))
  return Ranked(*map(np.asarray, found))


def _logits(unembed: Callable[[jax.Array], jax.Array], directions: jax.Array) -> jax.Array:
  logits = unembed(directions)
  if logits.ndim != 2 or len(logits) != len(directions):
    raise SAEError(
      f'unembed makes {logits.shape} of directions {directions.shape}',
      hint='logits [k, V] of directions [k, E]',
    )
  if not jnp.isfinite(logits).all():
    raise SAEError(
      'unembed gives logits that are no numbers',
      cause='a norm of a direction of length 0, or weights that are no numbers',
    )
  return logits


@partial(jax.jit, static_argnames='n')
def _extremes(logits_kxV: jax.Array, n: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """Ids and effects of the tokens that are raised most, and of those that are lowered most, [k, n]."""
  logits_kxV = logits_kxV.astype(jnp.float32)
  effect_kxV = logits_kxV - logits_kxV.mean(-1, keepdims=True)
  n = min(n, effect_kxV.shape[-1])
  raised, at_top = lax.top_k(effect_kxV, n)
  lowered, at_bottom = lax.top_k(-effect_kxV, n)
  return (at_top, raised), (at_bottom, -lowered)


@partial(jax.jit, static_argnames='n')
def _nearest(vectors_MxE: jax.Array, rows: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  unit_MxE = unit_rows(vectors_MxE)

  def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosine_M = precision.matmul(unit_MxE, unit_MxE[row]).at[row].set(-jnp.inf)
    cosine, index = lax.top_k(cosine_M, max(n, 1))
    return index, cosine

  index, cosine = lax.map(one, rows, batch_size=CHUNK)  # which fails on arrays without elements
  return index[:, :n], cosine[:, :n]
