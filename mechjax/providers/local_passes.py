"""Passes of a model over rows of tokens that continue from a cache, and log-probabilities that are read in them.

Probabilities of answers are needed at a few places of long texts. A pass that returns all logits of 16 rows of 1,000
tokens of a model with 150,000 tokens in its vocabulary returns 10 GB. Here a pass returns the residual stream, and
logits are computed at the places that are read (`local_logits`):

    rows = passes.start(n_rows=1, columns=passes.columns_of(900))
    rows, _ = passes.extend(rows, [prefix], [[]])                              the prefix, in one row
    rows = passes.spread(rows, 16, rows.used + passes.columns_of(320))         its keys and values in 16 rows
    rows, log_probs = passes.extend(rows, texts, [[(5, answers)], ...])        at token 5 of the first text

`CachedPasses` is for our own decoder. `WholePasses` has the same methods for upstream codes: its rows are the tokens so
far, which every extension computes again. Some codes do not have a cache, and the caches of others count columns for
their windows, so that padding between the tokens of a row would change their values.

Shapes of programs are rounded (`round_up`), so that few are compiled: to a quarter of the power of two below. Texts of
different lengths are aligned on the left, in passes of at most `WIDTH` columns; the rest is padding, which the mask of
the cache hides.

Memory, for B rows of S tokens in a model with L layers, K key-value heads of width H, N query heads and a vocabulary of
V: the cache 2 L B S K H, the scores of one layer 2 B N WIDTH S, the logits 3 PLACES V; 4 bytes each in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mechjax import code_version, harvest
from mechjax.errors import ProviderError
from mechjax.models.forward_pass import without_cache
from mechjax.models.language_model import LanguageModel
from mechjax.providers.local_logits import Found, ReadPlace, read_places

WIDTH = 256
"""Maximum number of columns of a pass with a cache."""

Reads = Sequence[tuple[int, Sequence[int]]]
"""Places in the new tokens of one row, in ascending order, each with the ids whose log-probabilities are read there."""


class Passes(Protocol):
  """Passes over rows that continue.

  Attributes:
    shares: whether a prefix that was computed is kept.
  """

  shares: bool

  def columns_of(self, n: int) -> int:
    """Number of columns that an extension by at most `n` tokens needs."""
    ...

  def columns_in(self, rows: Any) -> int:
    """Number of columns in use."""
    ...

  def start(self, n_rows: int, columns: int) -> Any:
    """Rows without tokens, with room for some columns."""
    ...

  def spread(self, rows: Any, n_rows: int, columns: int) -> Any:
    """Repeats a single row, with room for some columns, those in use included; the single row stays as it is."""
    ...

  def extend(
    self, rows: Any, new: Sequence[Sequence[int]], reads: Sequence[Reads], keep: bool = False
  ) -> tuple[Any, Found]:
    """Appends tokens to rows.

    Args:
      rows: the rows; not used again unless `keep`.
      new: tokens for each of the first rows, possibly none.
      reads: of each of these rows.
      keep: whether `rows` can still be extended otherwise.

    Returns:
      The longer rows, and the log-probabilities.
    """
    ...


@dataclasses.dataclass(frozen=True)
class CachedRows:
  """Rows of tokens in a cache.

  Attributes:
    cache: of the model's own kind.
    n_rows: number of rows.
    slots: number of columns.
    used: number of columns in use, padding included.
  """

  cache: PyTree
  n_rows: int
  slots: int
  used: int


def make_passes(model: LanguageModel) -> Passes:
  """Passes of a model with its present parameters."""
  ours = model.config is not None and model.generator.new_cache is not None
  return CachedPasses(model) if ours else WholePasses(model)


class CachedPasses:
  """Passes of our own decoder with its cache; see `Passes`."""

  shares = True

  def __init__(self, model: LanguageModel):
    """Prepares passes with the present parameters."""
    self._model, self._params = model, model.params

  def columns_of(self, n: int) -> int:
    """Number of columns that an extension by at most `n` tokens needs."""
    return sum(_widths(n))

  def columns_in(self, rows: CachedRows) -> int:
    """Number of columns in use."""
    return rows.used

  def start(self, n_rows: int, columns: int) -> CachedRows:
    """Rows without tokens."""
    slots = round_up(columns, 64)
    cache = self._model.generator.empty_cache(self._params, n_rows, slots)
    return CachedRows(cache, n_rows, slots, 0)

  def spread(self, rows: CachedRows, n_rows: int, columns: int) -> CachedRows:
    """Repeats a single row in a cache of its own."""
    empty = self.start(n_rows, columns)
    if rows.n_rows != 1 or empty.slots < rows.slots:
      raise ProviderError(
        f'{rows.n_rows} rows of {rows.slots} columns cannot become {n_rows} of {empty.slots}'
      )
    return dataclasses.replace(empty, cache=_repeat(rows.cache, empty.cache), used=rows.used)

  def extend(
    self, rows: CachedRows, new: Sequence[Sequence[int]], reads: Sequence[Reads], keep: bool = False
  ) -> tuple[CachedRows, Found]:
    """Appends tokens to rows; see `Passes`."""
    widths = _widths(max(map(len, new)))
    used = rows.used + sum(widths)
    if used > rows.slots:  # the cache would overwrite its last columns
      raise ProviderError(f'{used} columns in a cache of {rows.slots}')
    found, cache, start, advance = _empty(reads), rows.cache, 0, _advance
    if keep:
      advance = _advance_from_copy
    for width in widths:
      tokens, mask = _pad(new, rows.n_rows, start, width)
      hidden, cache = advance(self._params, tokens, mask, cache, **self._options())
      places = [
        ReadPlace(b, i, offset - start, ids)
        for b, row in enumerate(reads)
        for i, (offset, ids) in enumerate(row)
        if start <= offset < start + width
      ]
      read_places(self._model, hidden, places, found)
      start, advance = start + width, _advance
    return dataclasses.replace(rows, cache=cache, used=used), found

  def _options(self) -> dict[str, Any]:
    return _make_options(self._model, self._model.generator.step)


class WholePasses:
  """Passes of any causal model over all tokens so far, padded on the right; see `Passes`."""

  shares = False

  def __init__(self, model: LanguageModel):
    """Prepares passes with the present parameters."""
    self._model, self._params = model, model.params

  def columns_of(self, n: int) -> int:
    """Number of columns that an extension by at most `n` tokens needs."""
    return n

  def columns_in(self, rows: list[list[int]]) -> int:
    """Number of columns in use."""
    return max(map(len, rows))

  def start(self, n_rows: int, columns: int) -> list[list[int]]:
    """Rows without tokens."""
    return [[] for _ in range(n_rows)]

  def spread(self, rows: list[list[int]], n_rows: int, columns: int) -> list[list[int]]:
    """Repeats a single row."""
    return [list(rows[0]) for _ in range(n_rows)]

  def extend(
    self,
    rows: list[list[int]],
    new: Sequence[Sequence[int]],
    reads: Sequence[Reads],
    keep: bool = False,
  ) -> tuple[list[list[int]], Found]:
    """Appends tokens to rows; see `Passes`."""
    whole = [old + list(more) for old, more in zip(rows, [*new, *[()] * (len(rows) - len(new))])]
    found = _empty(reads)
    tokens, mask = _pad(whole, len(whole), 0, round_up(max(map(len, whole)), 16))
    hidden, _ = _advance(self._params, tokens, mask, None, **self._options())
    places = [
      ReadPlace(b, i, len(rows[b]) + offset, ids)
      for b, row in enumerate(reads)
      for i, (offset, ids) in enumerate(row)
    ]
    read_places(self._model, hidden, places, found)
    return whole, found

  def _options(self) -> dict[str, Any]:
    return _make_options(self._model, _step_of(self._model.apply))


def round_up(n: int, least: int) -> int:
  """Rounds a size up to a multiple of a quarter of the power of two below it, and of `least`, a power of two."""
  step = max(least, (1 << n.bit_length()) // 8)
  return -(-n // step) * step


# --- inside -----------------------------------------------------------------------------------------------


def _widths(n: int) -> list[int]:
  """Widths of the passes over `n` tokens."""
  full, rest = divmod(n, WIDTH)
  return [WIDTH] * full + ([round_up(rest, 4)] if rest else [])


def _pad(
  rows: Sequence[Sequence[int]], n_rows: int, start: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """Columns of rows that are aligned on the left, and their mask, [n_rows, width]."""
  tokens, mask = np.zeros((n_rows, width), np.int32), np.zeros((n_rows, width), bool)
  for row, onto, real in zip(rows, tokens, mask):
    part = row[start : start + width]
    onto[: len(part)], real[: len(part)] = part, True
  return jnp.asarray(tokens), jnp.asarray(mask)


def _empty(reads: Sequence[Reads]) -> Found:
  return [[np.empty(0)] * len(row) for row in reads]


def _make_options(model: LanguageModel, step: Callable) -> dict[str, Any]:
  """Arguments that choose the program."""
  site = f'resid_post.{model.n_layers - 1}'
  return {'step': step, 'site': site, 'version': code_version.now()}


@functools.lru_cache(maxsize=16)
def _step_of(apply: Callable) -> Callable:
  """A step without a cache; the same object for the same model, so that programs are found again."""
  return without_cache(apply).step


def _step(
  params: PyTree,
  tokens: jax.Array,
  mask: jax.Array,
  cache: PyTree,
  *,
  step: Callable,
  site: str,
  version: int,
) -> tuple[jax.Array, PyTree]:
  """The residual stream after the last layer, [B, T, D], and the longer cache; logits are not computed."""
  del version
  # A new function object, so that its cache entries, which hold functions of this trace, are dropped with it.
  fresh = lambda *args: step(*args)  # noqa: E731
  (_, cache), acts = harvest.call_and_reap(fresh, sites=site)(params, tokens, mask, cache)
  return acts[site], cache


_OPTIONS = ('step', 'site', 'version')
_advance = jax.jit(_step, static_argnames=_OPTIONS, donate_argnames=('cache',))
_advance_from_copy = jax.jit(_step, static_argnames=_OPTIONS)


@functools.partial(jax.jit, donate_argnums=1)
def _repeat(one: PyTree, empty: PyTree) -> PyTree:
  """A cache of one row in every row of an empty cache with as many slots or more."""

  def fill(x: jax.Array, onto: jax.Array) -> jax.Array:
    # Slots are never 1, so that only an axis of rows is.
    shape = [n if m == 1 else m for m, n in zip(x.shape, onto.shape)]
    return jax.lax.dynamic_update_slice(onto, jnp.broadcast_to(x, shape), [0] * x.ndim)

  return jax.tree.map(fill, one, empty)
