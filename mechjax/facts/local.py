"""Local processing: how much of a layer's stream at a token depends on the last few tokens alone.

If early layers only combine neighbouring tokens, their stream at a token is that of the same token with the last k
tokens before it and nothing else. So the model reads a text whole, and every token once more after BOS and with its
last k tokens (itself included), and the two streams are compared by their centred cosine (Nanda et al. 2023, Fact
Finding, post 5):

    cos(x_full - mu_l, x_trunc - mu_l),   mu_l the mean over ordinary tokens (`stream_centre`)

    centre = measure_centre(forward, params, texts, bos=bos)
    found = ContextComparison(forward, max_k=10)(params, texts, centre, bos=bos)
    found.summarise().median                                   [L, k]
    found.summarise(classify_tokens(texts_of_tokens) == 'comma')

All k together cost one pass: a row of eleven tokens has a truncated context of ten tokens, one for each k (`windows`).

Sharp edges: only tokens with at least `max_k` tokens before them count, so that all k are measured at the same tokens
and none of them is whole. A truncated context begins anew: the token is at position k, and every token of it sees less
than before. The control is the cosine with the whole context of another token, drawn at random from the texts that
run at once; it is not quite 0, because tokens of a text resemble each other. Tokens of one text are not independent:
the standard errors resample texts, which should not come from one document.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Float64, Int, PyTree

from mechjax import harvest, precision, watching
from mechjax.errors import FactsError
from mechjax.facts.bootstrap import error_of_median
from mechjax.facts.finite import as_table, check_count, check_finite
from mechjax.facts.needed_sites import check_layers
from mechjax.facts.stream_centre import SITE, Centre, Texts, pad_texts
from mechjax.facts.windows import make_windows
from mechjax.host_arrays import check_seed
from mechjax.programs.callables import check_function


@dataclasses.dataclass(frozen=True, eq=False)
class ContextSummary:
  """Centred cosines over some tokens.

  Attributes:
    median: by layer and k, [L, k].
    standard_error: of the median, by resampling texts, [L, k]; NaN for tokens of a single text.
    quantiles: [quantiles, L, k].
    shuffled: median of the control, [L, k].
    count: number of tokens.
  """

  median: Float64[np.ndarray, 'L k']
  standard_error: Float64[np.ndarray, 'L k']
  quantiles: Float64[np.ndarray, 'q L k']
  shuffled: Float64[np.ndarray, 'L k']
  count: int


@dataclasses.dataclass(frozen=True, eq=False)
class LocalProcessing:
  """Centred cosines of whole and truncated contexts.

  Attributes:
    cosines: of each token, layer and k = 1, 2, ..., [tokens, L, k].
    shuffled: the same with the whole context of another token, [tokens, L, k]: the control.
    text: text of each token, int [tokens].
    position: its position in the text, from 0, without BOS, int [tokens].
    token: its id, int [tokens].
  """

  cosines: Float32[np.ndarray, 'tokens L k']
  shuffled: Float32[np.ndarray, 'tokens L k']
  text: Int[np.ndarray, ' tokens']
  position: Int[np.ndarray, ' tokens']
  token: Int[np.ndarray, ' tokens']

  def summarise(
    self,
    chosen: Bool[np.ndarray, ' tokens'] | None = None,
    quantiles: Sequence[float] = (0.1, 0.25, 0.75, 0.9),
    resamples: int = 100,
    seed: int = 0,
  ) -> ContextSummary:
    """Summarises some of the tokens.

    Args:
      chosen: True for each token that counts, such as those of one kind; None for all.
      quantiles: shares of the tokens below each quantile.
      resamples: number of draws of texts for the standard error.
      seed: seed of the draws.

    Raises:
      FactsError: a mask of another shape, no token, or quantiles that are not from 0 to 1.
    """
    shares = as_table('quantiles', quantiles, 'quantiles')
    if (shares < 0).any() or (shares > 1).any():
      raise FactsError(
        f'quantiles={quantiles!r:.100}; expected shares from 0 to 1, not percentages'
      )
    mask = np.ones(len(self.text), bool) if chosen is None else np.asarray(chosen)
    if mask.shape != self.text.shape or mask.dtype != bool:
      raise FactsError(
        f'chosen= is {mask.dtype}{list(mask.shape)}; expected booleans [{len(self.text)}], one for each token'
      )
    if not mask.any():
      raise FactsError('no token is chosen', cause='a kind of token that the texts do not have')
    x = self.cosines[mask].astype(np.float64)
    return ContextSummary(
      median=np.median(x, axis=0),
      standard_error=error_of_median(x, self.text[mask], resamples, seed),
      quantiles=np.quantile(x, shares, axis=0),
      shuffled=np.median(self.shuffled[mask].astype(np.float64), axis=0),
      count=int(mask.sum()),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ContextComparison:
  """Comparison of every token in its whole text with the same token behind its last k tokens, for k = 1 to `max_k`.

  Texts of one longest length compile once, for any parameters.

  Attributes:
    forward: (params, tokens [B, T]) -> output; pure and causal, with tagged sites, such as `model.apply`.
    max_k: largest number of last tokens.
    batch: number of truncated rows that run at once, each of `max_k` + 1 tokens.
    texts_at_once: number of whole texts that run at once.
    site: name of a site with one value [B, T, D] in each layer.

  Raises:
    FactsError: a model in place of a function, or numbers below 1.
  """

  forward: Callable
  max_k: int = 10
  batch: int = 64
  texts_at_once: int = 4
  site: str = SITE

  def __post_init__(self) -> None:
    check_function(self.forward, FactsError, 'ContextComparison(model.apply)')
    for name in ('max_k', 'batch', 'texts_at_once'):
      check_count(name, getattr(self, name), 1)

  def __call__(
    self, params: PyTree, texts: Texts, centre: Centre, *, bos: int, seed: int = 0
  ) -> LocalProcessing:
    """Compares all tokens that have `max_k` tokens before them.

    Args:
      params: first argument of `forward`.
      texts: token ids of each text, without a token before them, at least `max_k` + 2.
      centre: means of the site, of `measure_centre`.
      bos: token that is put before whole and truncated texts, also for a model without one.
      seed: seed of the control.

    Raises:
      FactsError: a text that is too short, texts that begin with `bos` already, a model without the site, a centre of
        another site or model, NaN.
    """
    tokens_BxT, real_BxT = pad_texts(texts, bos)
    _check_lengths(real_BxT, self.max_k)
    L, D, _ = check_layers(self.forward, params, tokens_BxT[:1], self.site)
    if centre.site != self.site:
      raise FactsError(
        f'the centre is that of {centre.site!r}, and the compared site is {self.site!r}',
        hint=f'measure_centre(..., site={self.site!r})',
      )
    if centre.mean.shape != (L, D):
      raise FactsError(
        f'the centre has shape {list(centre.mean.shape)}, and {self.site} of this model [{L}, {D}]'
      )
    where = np.argwhere(real_BxT[:, 1:])
    where = where[where[:, 1] >= self.max_k]  # text and position of every token that counts
    out = np.zeros((2, len(where), L, self.max_k), np.float32)
    random, mean_LxD = (
      np.random.default_rng(check_seed(seed, FactsError)),
      centre.mean.astype(np.float32),
    )
    for rows, mine in _text_blocks(where[:, 0], len(tokens_BxT), self.texts_at_once):
      at = where[mine] - [rows[0], 0]
      windows = make_windows(tokens_BxT[rows], real_BxT[rows], at, self.max_k)
      whole = self._read_whole(params, tokens_BxT[rows], mean_LxD)
      column = at[:, 0] * tokens_BxT.shape[1] + at[:, 1] + 1
      partner = column[_draw_partners(len(at), random)]
      for index in _fill(len(windows.tokens), self.batch):
        token = windows.token[index]
        args = windows.tokens[index], mean_LxD, whole, column[token], partner[token]
        cosines = np.asarray(self._compare(params, *args))
        row, k = np.nonzero(token >= 0)
        out[:, mine.start + token[row, k], :, k] = cosines[:, :, row, k].transpose(2, 0, 1)
    check_finite('the cosines', out)
    ids = tokens_BxT[where[:, 0], where[:, 1] + 1]
    return LocalProcessing(out[0], out[1], where[:, 0], where[:, 1], ids)

  @functools.cached_property
  def _read_whole(self) -> watching.Jitted:
    """Reads whole texts: centred streams of length 1, [L, B * T, D]."""

    def run(params, tokens, mean_LxD):
      x = _centre(self._stream(params, tokens), mean_LxD)
      x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
      return x.reshape(len(x), -1, x.shape[-1])

    return watching.jit(run, self.forward)

  @functools.cached_property
  def _compare(self) -> watching.Jitted:
    """Runs truncated rows [W, K + 1]: cosines [2, L, W, K] with whole contexts at two sets of columns."""

    def run(params, tokens, mean_LxD, whole, column, partner):
      x = _centre(self._stream(params, tokens)[:, :, 1:], mean_LxD)
      length = jnp.linalg.norm(x, axis=-1)
      dot = lambda at: precision.einsum('lwkd,lwkd->lwk', x, whole[:, at])  # noqa: E731
      return jnp.stack([dot(column), dot(partner)]) / length

    return watching.jit(run, self.forward)

  def _stream(self, params: PyTree, tokens: Array) -> Array:
    """The site of every layer, [L, B, T, D]."""
    return harvest.reap(self.forward, sites=self.site)(params, tokens).stack(self.site)


def _centre(x: Array, mean_LxD: Array) -> Array:
  """Activations [L, rows, columns, D] without their mean, in float32 or wider."""
  x = precision.wide(x)
  return x - mean_LxD[:, None, None].astype(x.dtype)


def _text_blocks(
  text: Int[np.ndarray, ' tokens'], n_texts: int, size: int
) -> Iterator[tuple[np.ndarray, slice]]:
  """Texts of each block, the last filled up with the last text, and the tokens that they have."""
  for rows in _fill(n_texts, min(size, n_texts)):
    start, stop = np.searchsorted(text, [rows[0], rows[-1] + 1])
    yield rows, slice(int(start), int(stop))


def _fill(n: int, size: int) -> Iterator[np.ndarray]:
  """Indices below n in blocks of one size, the last filled up with the last index."""
  for start in range(0, n, size):
    yield np.minimum(np.arange(start, start + size), n - 1)


def _draw_partners(n: int, random: np.random.Generator) -> np.ndarray:
  """Another index for each index."""
  order, other = random.permutation(n), np.empty(n, np.int64)
  other[order] = np.roll(order, 1)
  return other


def _check_lengths(real_BxT: np.ndarray, max_k: int) -> None:
  lengths = real_BxT.sum(1) - 1
  short = np.flatnonzero(lengths < max_k + 2)
  if len(short):
    raise FactsError(
      f'text {short[0]} has {lengths[short[0]]} tokens, and k goes up to {max_k}',
      cause='a token counts if max_k tokens stand before it, and the control needs another such token',
      hint=f'texts of at least {max_k + 2} tokens, or a smaller max_k',
    )
