"""Loop over batches, which stream through once; the best examples are kept.

    batches      (tokens int [B, T], kept bool [B, T]); kept is False at padding and special tokens
    features = collect(activations, sae, params, batches, unembed=unembed)

The host has the histograms and the best examples so far. It receives the candidates of a batch (`selection`), decides
which of them stay, and asks the device for the windows of these few only.

Sharp edges. `activations` and `unembed` are not jitted here: jit them, with the weights of the model as arguments
(`partial(jax.jit(upto), weights)`), or these become constants of the executable. Sequences are numbered in order of
arrival, and the draw depends only on these numbers and the seed. A batch of another shape compiles again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation import splice
from mechjax.sae.features import directions, keeping, selection
from mechjax.sae.features.directions import Ranked
from mechjax.sae.features.keeping import Best
from mechjax.sae.features.record import EDGES, Examples, Features
from mechjax.sae.features.selection import FeatureSettings
from mechjax.sae.provenance import check_provenance

_AT_ONCE = 4096  # windows fetched by one call
_DEFAULT = FeatureSettings()


def collect(
  activations: Callable[[Any], jax.Array],
  sae: Architecture,
  params: Params,
  batches: Iterable[tuple[Any, Any]],
  *,
  latents: Any = None,
  unembed: Callable[[jax.Array], jax.Array] | None = None,
  settings: FeatureSettings = _DEFAULT,
  limit: float = np.inf,
  seed: int = 0,
  site: str | None = None,
) -> Features:
  """Collects features of some latents of a dictionary.

  Args:
    activations: function from tokens [B, T] to the inputs of the dictionary, [B, T, D] or [B, T, heads, ...].
    sae: the dictionary.
    params: its parameters.
    batches: tokens, and masks of those that count; iterated over once.
    latents: indices of latents, int [L]; None for all.
    unembed: function from directions [k, E] to logits [k, V]; None for no effects on logits.
    settings: sizes of the record.
    limit: maximum norm of an activation that counts (`store.scales`).
    seed: seed of the draw.
    site: the site of the activations, compared with the files of the dictionary; None to compare nothing.

  Raises:
    SAEError: the files of the dictionary name another site; a latent that does not exist, or is given twice; tokens and
      masks that do not fit each other; activations that are not finite; no tokens.
  """
  check_provenance(sae, site)
  if not limit > 0:
    raise SAEError(f'limit={limit} is not a norm', hint='a positive number, or inf for no limit')
  chosen = check_latents(sae, latents)
  collector = _Collector(sae, params, chosen, settings, seed)
  for tokens, kept in batches:
    tokens, kept = _check_batch(tokens, kept)
    x = splice.activations(activations(tokens), jnp.asarray(kept))
    if limit < np.inf:
      kept = kept & ~np.asarray(jnp.linalg.norm(x, axis=-1) > limit)  # NaN is found later
    collector.add(tokens, kept, x)
  if not collector.n_tokens:
    raise SAEError('no tokens', cause='no batches, or masks that keep nothing')
  none = Ranked(np.zeros((len(chosen), 0), np.int32), np.zeros((len(chosen), 0), np.float32))
  raised, lowered = none, none
  if unembed is not None:
    rows = jnp.asarray(params['W_dec'])[chosen]
    raised, lowered = directions.logit_effects(rows, unembed, settings.n_logits)
  drawn, level = collector.sample()
  return Features(
    width=sae.width,
    n_tokens=collector.n_tokens,
    latents=chosen,
    histogram=collector.histogram,
    top=collector.top.to_examples(settings.before),
    drawn=drawn,
    level=level,
    n_levels=settings.levels,
    promoted=raised,
    suppressed=lowered,
    decoder_near=directions.nearest(params['W_dec'], chosen, settings.n_near),
    encoder_near=directions.nearest(params['W_enc'].T, chosen, settings.n_near),
  )


class _Collector:
  """State after some batches."""

  def __init__(
    self,
    sae: Architecture,
    params: Params,
    latents: np.ndarray,
    settings: FeatureSettings,
    seed: int,
  ) -> None:
    self.sae, self.params, self.latents, self.settings = sae, params, latents, settings
    self.seed = np.uint32(seed % 2**32)
    self.n_tokens = self.n_sequences = 0
    L, W = len(latents), settings.before + 1 + settings.after
    self.histogram = np.zeros((L, len(EDGES) - 1), np.int64)
    self.top = Best(L, settings.n_top, W)
    self.drawn = Best(L, settings.levels * settings.per_level, W)

  def add(self, tokens: np.ndarray, kept: np.ndarray, x: jax.Array) -> None:
    """Adds a batch: tokens and mask [B, T], and the inputs of the dictionary [B, T, D]."""
    first = self.n_sequences
    f_MxBxT, found = selection.select(
      self.sae, self.settings, self.params, x, kept, self.latents.astype(np.int32),
      np.uint32(first % 2**32), self.seed,
    )  # fmt: skip
    if not found.finite:
      raise SAEError(
        'activations that are not finite', where=f'sequences {first} to {first + len(tokens) - 1}'
      )
    batch = _Batch(self.settings, f_MxBxT, np.where(kept, tokens, -1).astype(np.int32), first)
    self.histogram += np.asarray(found.histogram)
    # The top comes first: its largest activation defines the levels.
    for best, candidates, rank in (
      (self.top, found.top, keeping.rank_by_key(self.settings.n_top)),
      (self.drawn, found.drawn, self._rank_by_level),
    ):
      best.merge(keeping.offer(candidates, first, tokens.shape[1]), rank, batch.cut_windows)
    self.n_tokens += int(kept.sum())
    self.n_sequences += len(tokens)

  def sample(self) -> tuple[Examples, np.ndarray]:
    """The drawn contexts, strongest first, and their levels."""
    key, value = self.drawn.kept.key, self.drawn.kept.value
    order = np.argsort(-value, -1, kind='stable')
    level = np.where(key > 0, self._level(value), -1).astype(np.int32)
    return self.drawn.to_examples(self.settings.before, order), np.take_along_axis(level, order, -1)

  def _level(self, value: np.ndarray) -> np.ndarray:
    """Number of octaves below the one of the largest activation so far, up to the last level, [L, n]."""
    below = np.frexp(self.top.kept.value[:, :1])[1] - np.frexp(value)[1]
    return np.minimum(below, self.settings.levels - 1)

  def _rank_by_level(self, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the first few of each level by their keys; a `keeping.Rank`."""
    level, few = self._level(value), keeping.rank_by_key(self.settings.per_level)
    parts = [few(np.where(level == n, key, 0), value) for n in range(self.settings.levels)]
    order, keys = (np.concatenate(arrays, -1) for arrays in zip(*parts))
    return order, keys


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
  """Source of windows: activations on the device [L, B, T], tokens [B, T], number of the first sequence."""

  settings: FeatureSettings
  f_MxBxT: jax.Array
  tokens: np.ndarray
  first: int

  def cut_windows(
    self, row: np.ndarray, sequence: np.ndarray, position: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out tokens and activations around some tokens; a `keeping.Fetch`."""
    before, after = self.settings.before, self.settings.after
    padded = np.pad(self.tokens, ((0, 0), (before, after)), constant_values=-1)
    at = np.stack([row, sequence - self.first, position]).astype(np.int32)
    tokens = padded[at[1][:, None], at[2][:, None] + np.arange(before + 1 + after)]
    parts = [
      self._cut_activations(at[:, low : low + _AT_ONCE]) for low in range(0, len(row), _AT_ONCE)
    ]
    return tokens, np.concatenate(parts)

  def _cut_activations(self, at: np.ndarray) -> np.ndarray:
    """Activations around up to `_AT_ONCE` tokens, padded to that number, so that one program serves all calls."""
    n = at.shape[1]
    filled = np.pad(at, ((0, 0), (0, _AT_ONCE - n)))
    return np.asarray(selection.cut_windows(self.settings, self.f_MxBxT, *filled))[:n]


def check_latents(sae: Architecture, latents: Any) -> np.ndarray:
  """Converts indices of latents to int64 [L]; None to all of them.

  Raises:
    SAEError: they are not integers [L], a latent does not exist, or is given twice.
  """
  if latents is None:
    return np.arange(sae.width)
  chosen = np.asarray(latents)
  if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
    raise SAEError(f'latents of shape {chosen.shape} and {chosen.dtype}', hint='integers [L]')
  strangers = chosen[(chosen < 0) | (chosen >= sae.width)]
  if strangers.size:
    raise SAEError(f'latent {strangers[0]} of a dictionary with width={sae.width}')
  numbers, counts = np.unique(chosen, return_counts=True)
  if counts.max() > 1:
    raise SAEError(f'latent {numbers[counts.argmax()]} is given {counts.max()} times')
  return chosen.astype(np.int64)


def _check_batch(tokens: Any, kept: Any) -> tuple[np.ndarray, np.ndarray]:
  tokens, kept = np.asarray(tokens), np.asarray(kept)
  ids = np.issubdtype(tokens.dtype, np.integer) and tokens.ndim == 2 and tokens.size
  if tokens.shape != kept.shape or not ids or kept.dtype != bool:
    raise SAEError(
      f'tokens {tokens.dtype} {tokens.shape} and a mask {kept.dtype} {kept.shape}',
      hint='token ids [B, T] with at least one token, and one boolean for each token',
    )
  return tokens, kept
