"""Log-probabilities of some tokens at some places of a residual stream.

The logits of all places of a batch take more memory than the rest of a pass, and few of them are read. Here they are
computed at the places that are read, `PLACES` at a time:

    found = [[np.empty(0)]]
    read_places(model, hidden, [ReadPlace(row=0, number=0, column=7, ids=(5, 6))], found)
    found[0][0]              log-probabilities of the tokens 5 and 6 after column 7

Numbers of places and of ids are rounded up to powers of two, so that few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int32

from mechjax import logits
from mechjax.models.language_model import LanguageModel

PLACES = 128
"""Maximum number of places at which logits are computed at once."""

Found = list[list[Float64[np.ndarray, ' n']]]
"""Log-probabilities in nats, by row and number."""


class ReadPlace(NamedTuple):
  """A place in a batch.

  Attributes:
    row: number of the row.
    number: number of the read in its row.
    column: column of the residual stream.
    ids: tokens whose log-probabilities are read, as the next token.
  """

  row: int
  number: int
  column: int
  ids: Sequence[int]


def read_places(
  model: LanguageModel,
  hidden_BxTxD: jax.Array,
  places: Sequence[ReadPlace],
  found: Found,
) -> None:
  """Reads log-probabilities, and writes those of each place to found[row][number].

  Args:
    model: computes logits by its final norm and its head.
    hidden_BxTxD: the residual stream after the last layer.
    places: the places.
    found: is filled.
  """
  for start in range(0, len(places), PLACES):
    part = places[start : start + PLACES]
    n, width = _power(len(part)), _power(max(len(place.ids) for place in part))
    at, wanted = np.zeros((2, n), np.int32), np.zeros((n, width), np.int32)
    for k, place in enumerate(part):
      at[:, k], wanted[k, : len(place.ids)] = (place.row, place.column), place.ids
    values = _pick(model.unembed(_take(hidden_BxTxD, at)), wanted)
    for place, row in zip(part, np.asarray(values, np.float64)):
      found[place.row][place.number] = row[: len(place.ids)]


def _power(n: int) -> int:
  """The power of two from `n` on."""
  return 1 << (n - 1).bit_length()


@jax.jit
def _take(hidden_BxTxD: jax.Array, at: Int32[Array, '2 n']) -> jax.Array:
  return hidden_BxTxD[at[0], at[1]]


@jax.jit
def _pick(logits_: Float[Array, 'n V'], wanted: Int32[Array, 'n m']) -> Float[Array, 'n m']:
  return jnp.take_along_axis(logits.log_probs(logits_), wanted, axis=-1)
