"""Windows of consecutive tokens that count, and the excerpts made from them.

A mask says which tokens of a sequence count; padding and special tokens do not. An excerpt is a part of one RUN of
tokens that count. It has `width` tokens if the run has as many: a window that would leave the run is moved, so that the
length of an excerpt does not reveal where it was found. A run that is shorter is an excerpt as a whole.

    low, high = find_runs(kept)                                   bounds of the run of each token
    start, end = place(position, low, high, width, before)        window around a token
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mechjax.autointerp.record import Excerpt


def find_runs(
  kept: Bool[np.ndarray, 'B T'],
) -> tuple[Int[np.ndarray, 'B T'], Int[np.ndarray, 'B T']]:
  """Bounds of the run of kept tokens around each token; both are the position itself where it is not kept.

  Args:
    kept: tokens that count.

  Returns:
    The first position of the run, and the first position after it.
  """
  n = kept.shape[1]
  at = np.broadcast_to(np.arange(n), kept.shape)
  begins = kept & ~np.pad(kept, ((0, 0), (1, 0)))[:, :-1]
  ends = kept & ~np.pad(kept, ((0, 0), (0, 1)))[:, 1:]
  low = np.maximum.accumulate(np.where(begins, at, 0), axis=1)
  high = np.minimum.accumulate(np.where(ends, at + 1, n)[:, ::-1], axis=1)[:, ::-1]
  return np.where(kept, low, at), np.where(kept, high, at)


def place(
  position: Int[np.ndarray, ' *n'],
  low: Int[np.ndarray, ' *n'],
  high: Int[np.ndarray, ' *n'],
  width: int,
  before: int,
) -> tuple[Int[np.ndarray, ' *n'], Int[np.ndarray, ' *n']]:
  """Start and end of the window around each position, within its run.

  Args:
    position: positions of tokens.
    low, high: bounds of their runs, from `find_runs`.
    width: maximum number of tokens of a window.
    before: tokens before the position, unless an end of the run is nearer.
  """
  start = np.clip(position - before, low, np.maximum(low, high - width))
  return start, np.minimum(start + width, high)


def find_level(activations: Float[np.ndarray, ' W'], maximum: float) -> int:
  """Octaves between the largest of some activations and the latent's maximum; -1 if all are 0."""
  largest = float(np.max(activations))
  if not largest > 0:
    return -1
  # Rounding may lift an activation that was computed in another batch above the maximum.
  return max(0, int(np.frexp(maximum)[1] - np.frexp(largest)[1]))


def make_excerpt(
  sequence: int,
  start: int,
  tokens: Int[np.ndarray, ' W'],
  activations: Float[np.ndarray, ' W'],
  *,
  pieces: Sequence[str],
  maximum: float,
) -> Excerpt:
  """Builds an excerpt, with the text of its tokens and its level.

  Args:
    sequence, start, tokens, activations: as in `Excerpt`.
    pieces: text of each token of the vocabulary.
    maximum: the latent's largest activation.
  """
  return Excerpt(
    sequence=sequence,
    start=start,
    tokens=np.array(tokens, np.int64),
    pieces=tuple(pieces[int(token)] for token in tokens),
    activations=np.array(activations, np.float32),
    level=find_level(activations, maximum),
  )
