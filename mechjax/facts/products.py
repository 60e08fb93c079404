"""Reads of a Cartesian product of names, of which only the sums are kept.

A product of 100 first names and 100 surnames has 10,000 names, and the neurons of a few layers are ten thousand numbers
for each: gigabytes, of which an excess needs the listed names and three kinds of sums. So the product is read tile by
tile, each a few first names with many surnames in one batch of constant shape, and only these are kept, in float64:

    read = read_whole(model.apply, model.params, names.prefix, 'mlp_pre.3, mlp_post.3')      or prefixes.share_prefix
    sums = read_product(read, names)
    sums.excess()['mlp_post']        [P, L, F]: non-linear excess of every neuron at every listed name

A read of ten thousand names takes minutes. `on_tile` is called after every tile with the sums so far; what
`sums.arrays()` returns can be written to a file and given to `sums.load(arrays)`, and the reading continues there.

Sharp edge: the function that reads is not part of what is kept. A file belongs to one model and one set of sites, and
the program that writes it must say which.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float64, Int, Shaped

from mechjax.errors import FactsError
from mechjax.facts.excess import excess_from_sums
from mechjax.facts.finite import as_indices, check_count
from mechjax.facts.names import NameProduct
from mechjax.facts.reads import Read, Values

Tile = tuple[Int[np.ndarray, ' first'], Int[np.ndarray, ' last']]
"""Indices of first names and of surnames."""


class ProductSums:
  """Sums over a product of names; filled tile by tile.

  Attributes:
    names: the product.
    at: pairs whose own values are kept, int [P, 2].
    batch: maximum number of names of a tile.
    done: number of tiles that were added.
    of_first: sums over the surnames, by name, [A, ...].
    of_last: sums over the first names, by name, [B, ...].
    chosen: values at `at`, by name, [P, ...].
  """

  def __init__(
    self, names: NameProduct, at: Int[np.ndarray, 'pairs 2'] | None = None, batch: int = 256
  ) -> None:
    """Begins with no tile.

    Args:
      names: the product.
      at: pairs whose own values are kept; None for the listed names.
      batch: maximum number of names of a tile.

    Raises:
      FactsError: pairs that do not exist, or a batch below 1.
    """
    check_count('batch', batch, 1)
    self.names, self.batch = names, batch
    self.at = as_indices('at', names.pairs if at is None else at, 2)
    if self.at.shape[1] != 2 or (self.at >= names.shape).any():
      raise FactsError(f'at= is not a list of pairs of the product, whose shape is {names.shape}')
    self.done = 0
    self.of_first: dict[str, Float64[np.ndarray, 'first ...']] = {}
    self.of_last: dict[str, Float64[np.ndarray, 'last ...']] = {}
    self.chosen: dict[str, Float64[np.ndarray, 'pairs ...']] = {}

  @functools.cached_property
  def tiles(self) -> list[Tile]:
    """All tiles, in order."""
    A, B = self.names.shape
    width = math.ceil(B / math.ceil(B / self.batch))
    height = min(A, max(1, self.batch // width))
    return [
      (np.arange(a, min(a + height, A)), np.arange(b, min(b + width, B)))
      for a in range(0, A, height)
      for b in range(0, B, width)
    ]

  @property
  def is_complete(self) -> bool:
    """Whether every tile was added."""
    return self.done == len(self.tiles)

  def add(self, values: Values) -> None:
    """Adds the values of the next tile.

    Raises:
      FactsError: values of another shape, other names of values than before, NaN; nothing is added then.
    """
    if self.is_complete:
      raise FactsError(f'all {self.done} tiles were added already')
    first, last = self.tiles[self.done]
    parts = {name: np.asarray(x).astype(np.float64) for name, x in values.items()}
    self._check(parts, (len(first), len(last)))
    if not self.of_first:
      self._begin(parts)
    here = np.isin(self.at[:, 0], first) & np.isin(self.at[:, 1], last)
    i, j = (self.at[here] - [first[0], last[0]]).T
    for name, x in parts.items():
      self.of_first[name][first] += x.sum(1)
      self.of_last[name][last] += x.sum(0)
      self.chosen[name][here] = x[i, j]
    self.done += 1

  def _begin(self, parts: Mapping[str, np.ndarray]) -> None:
    for name, x in parts.items():
      for table, n in zip(
        (self.of_first, self.of_last, self.chosen), (*self.names.shape, len(self.at))
      ):
        table[name] = np.zeros((n, *x.shape[2:]))

  def _check(self, parts: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
    if self.of_first and parts.keys() != self.of_first.keys():
      raise FactsError(f'a tile has {[*parts]}, the tiles before have {[*self.of_first]}')
    for name, x in parts.items():
      like = self.of_first[name].shape[1:] if self.of_first else x.shape[2:]
      if x.shape != (*shape, *like):
        raise FactsError(f'{name!r} has shape {x.shape}; expected {(*shape, *like)}')
      if not np.isfinite(x.sum()):  # a sum of finite values of 32 bits is finite
        bad = np.argwhere(~np.isfinite(x))
        a, b = (index[k] for index, k in zip(self.tiles[self.done], bad[0][:2]))
        tokens = self.names.rows(np.array([[a, b]]))[0].tolist()
        raise FactsError(
          f'{name!r} contains NaN or infinity',
          where=f'the name with the tokens {tokens}',
          cause='an overflow, a token id beyond the vocabulary, or damaged weights',
        )

  def excess(self) -> dict[str, Float64[np.ndarray, 'pairs ...']]:
    """Non-linear excess of the pairs `at`, [P, ...] by name; see `excess`.

    Raises:
      FactsError: tiles are missing.
    """
    if not self.is_complete:
      raise FactsError(f'{self.done} of {len(self.tiles)} tiles were read')
    i, j = self.at.T
    return {
      name: excess_from_sums(
        x,
        self.of_first[name][i],
        self.of_last[name][j],
        self.of_first[name].sum(0),
        self.names.shape,
      )
      for name, x in self.chosen.items()
    }

  def check_names(self, names: NameProduct) -> None:
    """Raises FactsError unless a product is the one that these sums are of."""
    mine, other = (_list_tokens(x) for x in (self.names, names))
    for part, tokens in mine.items():
      if not np.array_equal(tokens, other[part]):
        raise FactsError(
          f'the sums to continue are of a product with another {part!r}',
          hint='ProductSums(names) for this product, or sums=None',
        )

  def arrays(self) -> dict[str, Shaped[np.ndarray, ' ...']]:
    """The state as arrays, for a file (`numpy.savez`)."""
    tables = {'of_first': self.of_first, 'of_last': self.of_last, 'chosen': self.chosen}
    found = {f'{kind}/{name}': x for kind, table in tables.items() for name, x in table.items()}
    return found | self._question() | {'done': np.array(self.done)}

  def _question(self) -> dict[str, np.ndarray]:
    """The product, the pairs and the tiles that sums belong to."""
    return _list_tokens(self.names) | {'at': self.at, 'batch': np.array(self.batch)}

  def load(self, arrays: Mapping[str, Shaped[np.ndarray, ' ...']]) -> None:
    """Takes over a state that `arrays` returned.

    Raises:
      FactsError: it is the state of another product, other pairs or another batch.
    """
    if 'done' not in arrays:
      raise FactsError("the saved sums lack 'done', the number of tiles", cause='another file')
    for name, mine in self._question().items():
      if name not in arrays or not np.array_equal(arrays[name], mine):
        raise FactsError(
          f'the saved sums have another {name!r} than this product',
          hint='read again, or make the product as it was when they were saved',
        )
    for key in arrays:
      kind, _, name = key.partition('/')
      if name:
        getattr(self, kind)[name] = np.array(arrays[key])
    self.done = int(arrays['done'])


def _list_tokens(names: NameProduct) -> dict[str, np.ndarray]:
  """The tokens of a product."""
  return {'first': names.first, 'last': names.last, 'prefix': np.array(names.prefix)}


def read_product(
  read: Read,
  names: NameProduct,
  *,
  at: Int[np.ndarray, 'pairs 2'] | None = None,
  batch: int = 256,
  sums: ProductSums | None = None,
  on_tile: Callable[[ProductSums], None] | None = None,
) -> ProductSums:
  """Reads a product of names, tile by tile.

  Args:
    read: reads all pairs of some first names and some surnames; `reads.read_whole`, or `prefixes.share_prefix`.
    names: the product.
    at: pairs whose own values are kept; None for the listed names.
    batch: maximum number of names in one pass.
    sums: sums to continue; None to begin. Their own `at` and `batch` count.
    on_tile: called with the sums after each tile, to show progress or to save.

  Returns:
    The complete sums.

  Raises:
    FactsError: pairs that do not exist; sums of another product; values that change their shape, or NaN.
  """
  sums = ProductSums(names, at, batch) if sums is None else sums
  sums.check_names(names)
  height, width = map(len, sums.tiles[0])
  for first, last in sums.tiles[sums.done :]:
    full = _fill(sums.names.first[first], height), _fill(sums.names.last[last], width)
    values = read(*full)  # one shape for all tiles, so that nothing is compiled again
    sums.add({name: np.asarray(x)[: len(first), : len(last)] for name, x in values.items()})
    if on_tile is not None:
      on_tile(sums)
  return sums


def _fill(tokens: np.ndarray, n: int) -> np.ndarray:
  """Tokens, of which the last is repeated up to a length."""
  return np.pad(tokens, (0, n - len(tokens)), mode='edge')
