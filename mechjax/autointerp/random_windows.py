"""Windows drawn at random from all texts, with the activations of all latents in them.

Texts in which a latent is not active are most texts, so they are drawn once for all latents. Each run of tokens that
count is divided into windows that do not overlap, after a random number of tokens that are left out; and the `n`
windows with the smallest hashes stay. A batch is seen once, whatever the amount of text, and a hash depends on the
number of the sequence, the position and the seed alone. So the draw is uniform, and the cutting into batches does not
change it.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mechjax.autointerp.splitting import hash_units

_AT_ONCE = 64  # windows that one call fetches from the device
_DRAW, _OFFSET = 1, 2  # so that the hashes of a draw and of an offset differ


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """A window of a text.

  Attributes:
    key: rank in a draw.
    sequence: number of its sequence.
    start: position of its first token.
    tokens: token ids.
    activations: activations of the latents in it, float32 [M, W].
  """

  key: float
  sequence: int
  start: int
  tokens: Int[np.ndarray, ' W']
  activations: Float[np.ndarray, 'M W']


class RandomWindows:
  """The windows with the smallest hashes so far.

  Attributes:
    windows: these, in the order of their hashes.
  """

  def __init__(self, n: int, width: int, min_width: int, seed: int) -> None:
    """Starts without windows.

    Args:
      n: number of windows.
      width: tokens of a window.
      min_width: runs of tokens that are shorter are left out.
      seed: seed of the draw.
    """
    self.n, self.width, self.min_width, self.seed = n, width, min_width, seed
    self.windows: list[Window] = []

  def add(
    self,
    first: int,
    tokens: Int[np.ndarray, 'B T'],
    low: Int[np.ndarray, 'B T'],
    high: Int[np.ndarray, 'B T'],
    f: Float[Array, 'M B T'],
  ) -> None:
    """Adds the windows of a batch.

    Args:
      first: number of its first sequence.
      tokens: token ids.
      low, high: bounds of runs, from `windows.find_runs`.
      f: activations on the device.
    """
    row, start = np.nonzero(self._find_starts(first, low, high))
    key = hash_units(self.seed, np.full(len(row), _DRAW), first + row, start)
    limit = self.windows[-1].key if len(self.windows) == self.n else np.inf
    entering = np.argsort(key, kind='stable')[: self.n]
    entering = entering[key[entering] < limit]
    row, start, key = row[entering], start[entering], key[entering]
    end = np.minimum(start + self.width, high[row, start])
    found = self._fetch(f, row, start)
    new = [
      Window(
        float(key[i]),
        first + int(row[i]),
        int(start[i]),
        tokens[row[i], start[i] : end[i]].copy(),
        found[i, :, : end[i] - start[i]].copy(),
      )
      for i in range(len(row))
    ]
    self.windows = sorted(self.windows + new, key=lambda window: window.key)[: self.n]

  def _find_starts(self, first: int, low: np.ndarray, high: np.ndarray) -> Bool[np.ndarray, 'B T']:
    """Mask of the first tokens of windows."""
    length, width = high - low, self.width
    at = np.broadcast_to(np.arange(low.shape[1]), low.shape)
    sequence = np.broadcast_to(first + np.arange(len(low))[:, None], low.shape)
    spare = np.where(length >= width, length % width, 0)
    skipped = np.floor(
      hash_units(self.seed, np.full(low.shape, _OFFSET), sequence, low) * (spare + 1)
    )
    since = at - low - skipped
    whole = (since >= 0) & (since % width == 0) & (at + width <= high)
    short = (length < width) & (at == low)
    return (length >= max(1, self.min_width)) & (whole | short)

  def _fetch(self, f: jax.Array, row: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Activations from each start on, float32 [n, M, width]."""
    parts = [np.zeros((0, len(f), self.width), np.float32)]
    for at in range(0, len(row), _AT_ONCE):
      ids = np.stack([row[at : at + _AT_ONCE], start[at : at + _AT_ONCE]]).astype(np.int32)
      n = ids.shape[1]
      filled = np.pad(ids, ((0, 0), (0, _AT_ONCE - n)))  # so that one program serves all calls
      parts.append(np.asarray(_cut(f, *filled, width=self.width))[:n])
    return np.concatenate(parts)


@partial(jax.jit, static_argnames='width')
def _cut(f_MxBxT: jax.Array, row: jax.Array, start: jax.Array, width: int) -> jax.Array:
  at = jnp.minimum(start[:, None] + jnp.arange(width), f_MxBxT.shape[-1] - 1)
  return f_MxBxT[:, row[:, None], at].transpose(1, 0, 2)
