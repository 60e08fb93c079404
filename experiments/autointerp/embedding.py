"""Embedding of texts by the model itself: the mean of its residual stream over the tokens of a text.

    embed = make_embed(model)
    embed(['a text', 'another one'])                   float32 [2, D], of a middle layer

The token that begins a text is left out of the mean: its activation is many times as long as those of others, and the
same in every text. Texts of nearly one length run together, padded at their ends under a mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mechjax import harvest, sites
from mechjax.autointerp.scoring.embedding import Embed
from mechjax.errors import InterpretationError, MechjaxError
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import layout

ROWS, STEP = 16, 16
"""Texts in one pass, and the number whose multiples are the lengths of padded texts."""


def make_embed(model: LanguageModel) -> Embed:
  """Function from texts to their embeddings.

  Args:
    model: the model.

  Returns:
    The function; a text without tokens is an InterpretationError.
  """
  site = sites.parse(f'resid_post.{model.n_layers // 2}')
  read = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))
  begin = layout.first_token(model.tokenizer)
  first = [] if begin is None else [begin]

  def embed(texts: list[str]) -> Float[np.ndarray, 'n D']:
    ids = [[*first, *_split(model, text)] for text in texts]
    if short := [text for text, row in zip(texts, ids) if len(row) == len(first)]:
      raise InterpretationError(f'{short[0]!r} does not have a token', cause='an empty text')
    found = np.zeros((len(texts), model.d_model), np.float32)
    padded = np.array([-(-len(row) // STEP) * STEP for row in ids])
    for length in np.unique(padded):
      places = np.flatnonzero(padded == length)
      for start in range(0, len(places), ROWS):
        part = places[start : start + ROWS]
        tokens, mask = _pad([ids[i] for i in part], int(length))
        acts = np.asarray(
          read(model.params, jnp.asarray(tokens), jnp.asarray(mask))[site], np.float32
        )
        counted = mask.copy()
        counted[:, : len(first)] = False
        for row, at in enumerate(part):
          found[at] = acts[row, counted[row]].mean(0)
    return found

  return embed


def _split(model: LanguageModel, text: str) -> list[int]:
  """Token ids of a text; a space stands for characters that the vocabulary lacks, which do not print."""
  try:
    return model.tokenizer.split(text)
  except MechjaxError:
    return model.tokenizer.split(''.join(c if c.isprintable() else ' ' for c in text))


def _pad(ids: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of token ids with zeros after them, int32 [ROWS, length], and the mask of the ids."""
  tokens = np.zeros((ROWS, length), np.int32)
  mask = np.zeros((ROWS, length), bool)
  for i in range(ROWS):
    row = ids[min(i, len(ids) - 1)]
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  return tokens, mask
