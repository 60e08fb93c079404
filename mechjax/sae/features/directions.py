"""Effects on logits and nearest neighbours, from the directions of a dictionary alone, without any text.

A latent adds its row of W_dec to the site, so its direct effect on the prediction is that row times the unembedding. A
constant added to all logits changes no probability, so effects are relative to their mean over the vocabulary. And
directions are compared by their cosine: decoder rows (what two latents write) and encoder columns (what they react to).

Sharp edges. Effects are per unit of activation. The layers between the site and the logits count only as far as
`unembed` includes them: the final norm is not a linear map, and fixing its scale or leaving it out are both common.
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
  """Best n items of each latent, the best first.

  Attributes:
    ids: indices, int [L, n].
    values: their values, float32 [L, n].
  """

  ids: np.ndarray
  values: np.ndarray


def logit_effects(
  directions: Any, unembed: Callable[[jax.Array], jax.Array], n: int
) -> tuple[Ranked, Ranked]:
  """Tokens whose logits directions raise and lower most, relative to the mean over the vocabulary.

  Args:
    directions: directions at the output site, [L, E].
    unembed: function from directions [k, E] to logits [k, V]; linear, and jitted if speed matters.
    n: number of tokens.

  Returns:
    The tokens raised most, and those lowered most.

  Raises:
    SAEError: the logits have another shape, or are not finite.
  """
  directions = jnp.asarray(directions)
  parts = [
    _extremes(_logits(unembed, directions[low : low + CHUNK]), n)
    for low in range(0, len(directions), CHUNK)
  ]
  raised, lowered = (Ranked(*map(np.concatenate, zip(*side))) for side in zip(*parts))
  return raised, lowered


def nearest(vectors: Any, rows: Any, n: int) -> Ranked:
  """Nearest neighbours of some vectors by cosine.

  Args:
    vectors: all vectors, [M, E]; one of length 0 has no near neighbours.
    rows: indices of the vectors whose neighbours are wanted, int [L].
    n: number of neighbours, the vector itself excluded; all others if there are fewer.

  Returns:
    Indices of the neighbours, and their cosines.
  """
  vectors = jnp.asarray(vectors)
  found = _nearest(vectors, jnp.asarray(rows, jnp.int32), min(n, len(vectors) - 1))
  return Ranked(*map(np.asarray, found))


def _logits(unembed: Callable[[jax.Array], jax.Array], directions: jax.Array) -> jax.Array:
  logits = unembed(directions)
  if logits.ndim != 2 or len(logits) != len(directions):
    raise SAEError(
      f'unembed returns {logits.shape} for directions {directions.shape}',
      hint='logits [k, V] for directions [k, E]',
    )
  if not jnp.isfinite(logits).all():
    raise SAEError(
      'unembed returns logits that are not finite',
      cause='normalisation of a direction of length 0, or weights that are not finite',
    )
  return logits


@partial(jax.jit, static_argnames='n')
def _extremes(logits_kxV: jax.Array, n: int) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """Ids and effects of the tokens raised most, and of those lowered most, [k, n]."""
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

  index, cosine = lax.map(one, rows, batch_size=CHUNK)  # lax.map fails on arrays without elements
  return index[:, :n], cosine[:, :n]
