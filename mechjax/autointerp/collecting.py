"""One pass over texts that finds the examples of some latents.

    found = collect_examples(activations, sae, params, batches, pieces, latents=[3, 17], unembed=unembed)
    found[0]                a LatentExamples; `found` is a sequence of them
    found.features          the record for `viz.dashboard`
    found.left_out          {17: 'it is not active on any of the 200000 tokens'}
    found.fewer             {3: 'hard 4 of 10'}

`batches` and `activations` are those of `mechjax.sae.features.collect`, which finds the strongest contexts and draws
contexts of each level. The same pass draws random windows (`random_windows`) and windows of near latents
(`hard_negatives`). Batches stream through once and none of them is kept, so the amount of text is not limited by
memory; the result depends on the texts, the settings and the seed, and not on the cutting into batches.

Sharp edges. The dictionary encodes each batch twice, once for the record and once for the latents with their
neighbours. Activations of all latents that are looked at are on the device for one batch, 4 bytes for each token and
latent; the random windows of all latents are on the host, 64 KB for each latent with the default settings. With a short
text, lists are short: `fewer` has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.autointerp.examples import ExampleSettings, Found, choose_examples, list_shortages
from mechjax.autointerp.hard_negatives import HardNegatives
from mechjax.autointerp.random_windows import RandomWindows
from mechjax.autointerp.record import LatentExamples
from mechjax.autointerp.splitting import hash_units, is_shown
from mechjax.autointerp.windows import find_runs
from mechjax.errors import InterpretationError
from mechjax.sae import features as sae_features
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation import splice
from mechjax.sae.features import Examples, Features, FeatureSettings
from mechjax.sae.features.collecting import check_latents

_DEFAULT = ExampleSettings()
_SMALLER = 4  # so that these hashes differ from those of `examples`


@dataclasses.dataclass(frozen=True, eq=False)
class Collected(Sequence[LatentExamples]):
  """Examples of latents: a sequence of them, in the order in which the latents were given.

  Attributes:
    examples: examples of each latent that has enough of them.
    features: record of all the latents, with the sizes of `ExampleSettings.features`.
    left_out: reason for each latent without examples.
    fewer: lists that are shorter than asked for, by latent.
  """

  examples: tuple[LatentExamples, ...]
  features: Features
  left_out: Mapping[int, str]
  fewer: Mapping[int, str]

  def __len__(self) -> int:
    return len(self.examples)

  @overload
  def __getitem__(self, index: int) -> LatentExamples: ...
  @overload
  def __getitem__(self, index: slice) -> tuple[LatentExamples, ...]: ...
  def __getitem__(self, index: int | slice) -> LatentExamples | tuple[LatentExamples, ...]:
    return self.examples[index]


def collect_examples(
  activations: Callable[[Any], jax.Array],
  sae: Architecture,
  params: Params,
  batches: Iterable[tuple[Any, Any]],
  pieces: Sequence[str],
  *,
  latents: Any,
  settings: ExampleSettings = _DEFAULT,
  seed: int = 0,
  unembed: Callable[[jax.Array], jax.Array] | None = None,
  limit: float = np.inf,
  site: str | None = None,
) -> Collected:
  """Collects excerpts of some latents, split by sequence into shown and scored ones.

  Args:
    activations: function from tokens [B, T] to the inputs of the dictionary, [B, T, D] or [B, T, heads, ...].
    sae: the dictionary.
    params: its parameters.
    batches: tokens int [B, T], and masks bool [B, T] of those that count; iterated over once.
    pieces: text of each token of the vocabulary.
    latents: numbers of latents, int [M].
    settings: numbers of excerpts.
    seed: seed of the split and of the draws.
    unembed: function from directions [k, E] to logits [k, V], for the record; None for no effects on logits.
    limit: maximum norm of an activation that counts (`store.scales`).
    site: the site of the activations, compared with the files of the dictionary; None to compare nothing.

  Raises:
    InterpretationError: pieces that are not texts, tokens without a piece, or no latent with enough examples.
    SAEError: as `mechjax.sae.features.collect`.
  """
  _check_pieces(pieces)
  chosen = check_latents(sae, latents)
  stream = _Stream(activations, sae, params, chosen, settings, seed, limit, len(pieces))
  features = sae_features.collect(
    stream.activations, sae, params, stream.iterate(batches), latents=chosen, unembed=unembed,
    settings=settings.collected, limit=limit, seed=seed, site=site,
  )  # fmt: skip
  found = Found(features, pieces, stream.random.windows, stream.hard.windows)
  each = {
    int(latent): choose_examples(found, row, settings, seed) for row, latent in enumerate(chosen)
  }
  examples = tuple(one for one in each.values() if isinstance(one, LatentExamples))
  left_out = {latent: one for latent, one in each.items() if isinstance(one, str)}
  if not examples:
    latent, reason = next(iter(left_out.items()))
    raise InterpretationError(
      f'none of the {len(each)} latents has enough examples',
      where=f'latent {latent}, for example: {reason}',
      hint='more text, other latents, or a smaller ExampleSettings.min_examples',
    )
  shortages = {one.latent: list_shortages(one, settings) for one in examples}
  fewer = {latent: text for latent, text in shortages.items() if text}
  return Collected(examples, _shrink(features, settings.features, seed), left_out, fewer)


class _Stream:
  """Batches on their way to `features.collect`, which is given the activations of each one after we have seen them."""

  def __init__(
    self,
    activations: Callable[[Any], jax.Array],
    sae: Architecture,
    params: Params,
    latents: np.ndarray,
    settings: ExampleSettings,
    seed: int,
    limit: float,
    n_pieces: int,
  ) -> None:
    self.compute, self.sae, self.params = activations, sae, params
    self.settings, self.seed, self.limit, self.n_pieces = settings, seed, limit, n_pieces
    self.first, self.kept = 0, np.zeros((0, 0), bool)
    near = sae_features.nearest(params['W_dec'], latents, settings.n_near * bool(settings.n_hard))
    others = np.setdiff1d(near.ids, latents)
    self.looked = np.concatenate([latents, others]).astype(np.int32)
    row = {int(latent): n for n, latent in enumerate(self.looked)}
    rows = np.array([row[int(n)] for n in near.ids.reshape(-1)], int).reshape(near.ids.shape)
    sizes = {'width': settings.window, 'min_width': settings.min_window, 'seed': seed}
    self.random = RandomWindows(settings.n_windows, **sizes)
    self.hard = HardNegatives(
      latents, rows, near.values > 0, n=4 * settings.n_hard + 8, before=settings.before, **sizes
    )
    self.n_latents = len(latents)

  def iterate(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for tokens, kept in batches:
      self.kept = kept
      yield tokens, kept

  def activations(self, tokens: np.ndarray) -> jax.Array:
    """Activations of the batch that was yielded last; `features.collect` has checked its tokens and mask."""
    kept = np.asarray(self.kept)
    self._check_tokens(tokens, kept)
    value = self.compute(tokens)
    x = splice.activations(value, jnp.asarray(kept))
    if self.limit < np.inf:
      kept = kept & ~np.asarray(jnp.linalg.norm(x, axis=-1) > self.limit)
    f = _encode(self.sae, self.params, x, kept, self.looked)
    low, high = find_runs(kept)
    self.random.add(self.first, tokens, low, high, f[: self.n_latents])
    if self.settings.n_hard:
      scored = ~is_shown(self.first + np.arange(len(tokens)), self.seed, self.settings.shown_share)
      self.hard.add(self.first, tokens, low, high, scored, f)
    self.first += len(tokens)
    return value

  def _check_tokens(self, tokens: np.ndarray, kept: np.ndarray) -> None:
    wrong = tokens[kept & ((tokens < 0) | (tokens >= self.n_pieces))]
    if wrong.size:
      raise InterpretationError(
        f'token {wrong[0]}, and there are {self.n_pieces} pieces',
        where=f'sequences {self.first} to {self.first + len(tokens) - 1}',
        cause='the pieces of another tokenizer',
      )


@partial(jax.jit, static_argnames='sae')
def _encode(
  sae: Architecture, params: Params, x: jax.Array, kept: jax.Array, latents: jax.Array
) -> jax.Array:
  """Activations of some latents, [M, B, T], 0 where a token does not count."""
  all_BxM = sae.encode(params, x.reshape(-1, x.shape[-1]))
  f_MxB = jnp.where(kept.reshape(-1), all_BxM.T[latents], 0).astype(jnp.float32)
  return f_MxB.reshape(-1, *kept.shape)


def _check_pieces(pieces: Sequence[str]) -> None:
  if isinstance(pieces, str) or not len(pieces):
    raise InterpretationError(
      f'pieces of type {type(pieces).__name__}', hint='the text of each token of the vocabulary'
    )
  for number, piece in enumerate(pieces):
    if not isinstance(piece, str):
      raise InterpretationError(f'piece {number} is {piece!r:.60}; expected a text')


# --- record -----------------------------------------------------------------------------------------------


def _shrink(features: Features, settings: FeatureSettings, seed: int) -> Features:
  """The record with the sizes of `settings`: fewer contexts in smaller windows, drawn without regard to activations."""
  drawn = features.drawn
  rank = hash_units(seed, np.full(drawn.sequence.shape, _SMALLER), drawn.sequence, drawn.position)
  stays = np.zeros(rank.shape, bool)
  for n in range(settings.levels):
    own = np.where(drawn.found & (features.level == n), rank, np.inf)
    limit = np.sort(own, -1)[:, : settings.per_level][:, -1:]
    stays |= (own <= limit) & np.isfinite(own)
  # The contexts that stay, strongest first as they were, and then empty rows.
  order = np.argsort(~stays, -1, kind='stable')[:, : settings.levels * settings.per_level]
  stays = np.take_along_axis(stays, order, -1)
  level = np.where(stays, np.take_along_axis(features.level, order, -1), -1)
  top = np.broadcast_to(np.arange(settings.n_top), (len(features.latents), settings.n_top))
  return dataclasses.replace(
    features,
    top=_cut(features.top, top, np.take_along_axis(features.top.found, top, -1), settings),
    drawn=_cut(drawn, order, stays, settings),
    level=level,
  )


def _cut(
  examples: Examples, order: np.ndarray, there: np.ndarray, settings: FeatureSettings
) -> Examples:
  rows = np.arange(len(order))[:, None]
  window = slice(examples.own - settings.before, examples.own + settings.after + 1)
  deep = there[..., None]
  return Examples(
    np.where(there, examples.sequence[rows, order], -1),
    np.where(there, examples.position[rows, order], -1),
    np.where(deep, examples.tokens[rows, order][..., window], -1),
    np.where(deep, examples.activations[rows, order][..., window], np.float32(0)),
    settings.before,
  )
