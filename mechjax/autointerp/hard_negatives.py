"""Texts in which a latent is not active, although a latent with a near decoder row is.

Random texts are easy to tell from those of a latent: an explanation that is too wide ("a question") passes. Texts of
the nearest latents separate "a question" from "the word why". For each latent, tokens are drawn with probabilities in
proportion to the largest activation among its nearest latents, from the scored sequences alone; a token counts only if
the latent itself is 0 on the whole window around it, which is computed and not assumed.

The draw is weighted sampling without replacement over a stream: the tokens with the largest w / -log(u) stay, with u
uniform and w the weight (Efraimidis and Spirakis 2006). `u` depends on the seed, the latent, and the token's place.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mechjax.autointerp.random_windows import Window
from mechjax.autointerp.windows import place


class HardNegatives:
  """The best windows of each latent so far.

  Attributes:
    windows: for each latent its windows, best first; their activations are those of the latent, [1, W].
  """

  def __init__(
    self,
    latents: Int[np.ndarray, ' M'],
    near: Int[np.ndarray, 'M n'],
    is_near: Bool[np.ndarray, 'M n'],
    *,
    n: int,
    width: int,
    before: int,
    min_width: int,
    seed: int,
  ) -> None:
    """Starts without windows.

    Args:
      latents: numbers of the latents.
      near: rows of their nearest latents among the activations that `add` receives.
      is_near: which of these count.
      n: number of windows of a latent.
      width, before: as for `windows.place`.
      min_width: runs of tokens that are shorter are left out.
      seed: seed of the draw.
    """
    self.latents, self.near, self.is_near = latents, near, is_near
    self.n, self.width, self.before, self.min_width = n, width, before, min_width
    self.key = jax.random.key(seed % 2**32)
    self.windows: list[list[Window]] = [[] for _ in latents]

  def add(
    self,
    first: int,
    tokens: Int[np.ndarray, 'B T'],
    low: Int[np.ndarray, 'B T'],
    high: Int[np.ndarray, 'B T'],
    scored: Bool[np.ndarray, ' B'],
    f: Float[Array, 'L B T'],
  ) -> None:
    """Adds the windows of a batch.

    Args:
      first: number of its first sequence.
      tokens: token ids.
      low, high: bounds of runs, from `windows.find_runs`.
      scored: sequences that are scored.
      f: activations of the latents and after them of their nearest latents, on the device.
    """
    position = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    start, end = place(position, low, high, self.width, self.before)
    valid = scored[:, None] & (high - low >= max(1, self.min_width))
    sequences = ((first + np.arange(len(tokens))) % 2**32).astype(np.uint32)
    keys, places = map(
      np.asarray,
      _draw(
        f, self.near.astype(np.int32), self.is_near, (self.latents % 2**32).astype(np.uint32),
        start.astype(np.int32), end.astype(np.int32), valid, sequences, self.key, n=self.n,
      ),
    )  # fmt: skip
    for row, kept in enumerate(self.windows):
      limit = kept[-1].key if len(kept) == self.n else 0.0
      entering = np.flatnonzero(keys[row] > limit)
      b, t = np.divmod(places[row, entering], tokens.shape[1])
      for key, i, low_t, high_t in zip(keys[row, entering], b, start[b, t], end[b, t]):
        own = np.zeros((1, high_t - low_t), np.float32)  # `_draw` has seen that they are 0
        part = tokens[i, low_t:high_t].copy()
        kept.append(Window(float(key), first + int(i), int(low_t), part, own))
      kept.sort(key=lambda window: -window.key)
      del kept[self.n :]


@partial(jax.jit, static_argnames='n')
def _draw(
  f_LxBxT: jax.Array,
  near: jax.Array,
  is_near: jax.Array,
  latents: jax.Array,
  start: jax.Array,
  end: jax.Array,
  valid: jax.Array,
  sequences: jax.Array,
  key: jax.Array,
  n: int,
) -> tuple[jax.Array, jax.Array]:
  """Keys of the best tokens of each latent, 0 where there are fewer, and their places in the flattened batch."""
  n_tokens = f_LxBxT.shape[-1]

  def one(of: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    row, latent, near_row, is_near_row = of
    count = jnp.pad(jnp.cumsum(f_LxBxT[row] != 0, -1), ((0, 0), (1, 0)))
    active = jnp.take_along_axis(count, end, -1) - jnp.take_along_axis(count, start, -1)
    weight = jnp.where(is_near_row[:, None, None], f_LxBxT[near_row], 0).max(0, initial=0)
    own = jax.random.fold_in(key, latent)
    u = jax.vmap(
      lambda s: jax.random.uniform(jax.random.fold_in(own, s), (n_tokens,), minval=1e-30)
    )(sequences)
    ranked = jnp.where(valid & (active == 0) & (weight > 0), weight / -jnp.log(u), 0)
    found, at = lax.top_k(ranked.reshape(-1), min(n, ranked.size))
    return found, at

  return lax.map(one, (jnp.arange(len(latents)), latents, near, is_near))
