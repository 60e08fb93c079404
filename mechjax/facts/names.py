"""Names of two tokens, and their Cartesian product.

A fact about a name that depends on both of its tokens must be computed from their combination: "Michael" and "Jordan"
have no sport of their own. To separate the combination from its parts, the model reads every first name with every
surname, and the listed names are compared with the other pairs, which have the same tokens and no fact.

    names = NameProduct.of({'Michael Jordan': [7, 12], 'Tiger Woods': [9, 31], ...}, prefix=[bos])
    names.rows(names.pairs)              tokens [P, 3] of the listed names
    names.unlisted                       [A * B - P, 2]: the other pairs

Sharp edges: all statistics of a product need names of exactly two tokens, which a tokenizer decides. Names of other
lengths are an error that lists them, so that their number can be reported. A pair that is not listed may still be the
name of a person. Put a token that begins texts first, also for a model without one: position 0 is a resting place of
the attention, and its values are unlike all others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32

from mechjax.errors import FactsError
from mechjax.host_arrays import as_host

TOKENS = 2
"""Number of tokens of a name."""


@dataclasses.dataclass(frozen=True, eq=False)
class NameProduct:
  """All pairs of some first names and some surnames.

  Attributes:
    first: tokens of the A first names, each once, int32 [A].
    last: tokens of the B surnames, each once, int32 [B].
    pairs: the listed names: indices of their first name and their surname, int [P, 2].
    prefix: tokens before each name, at least one.
    labels: the listed names as texts, for messages and tables.
  """

  first: Int32[np.ndarray, ' first']
  last: Int32[np.ndarray, ' last']
  pairs: Int[np.ndarray, 'names 2']
  prefix: tuple[int, ...]
  labels: tuple[str, ...]

  @classmethod
  def of(
    cls, names: Mapping[str, Sequence[int] | Int[np.ndarray, ' _']], prefix: Sequence[int]
  ) -> NameProduct:
    """Makes the product of the first names and the surnames of a list.

    Args:
      names: token ids of each name, without the tokens before it, by its text.
      prefix: tokens before each name: the one that begins texts, at least.

    Raises:
      FactsError: names that are not two tokens; fewer than two first names or surnames; two names with the same
        tokens; no prefix; ids that are not whole numbers from 0.
    """
    before = _as_ids('prefix', prefix)
    if not before.size:
      raise FactsError(
        'prefix= is empty, so that the first name would be at position 0',
        cause='position 0 is a resting place of the attention, and its values are unlike all others',
        hint='prefix=[bos], the id of the token that begins texts, or a common token for a model without one',
      )
    if not isinstance(names, Mapping):
      raise FactsError(
        f'names= is a {type(names).__name__}; expected token ids by the text of each name',
        hint="{'Michael Jordan': [7, 12], 'Tiger Woods': [9, 31]}",
      )
    rows = {text: _as_ids(repr(text), ids) for text, ids in names.items()}
    _check_lengths(rows)
    table = np.array([*rows.values()], np.int64).reshape(-1, TOKENS)
    _check_unique(table, [*rows])
    columns, indices = zip(*(np.unique(column, return_inverse=True) for column in table.T))
    for what, column in zip(('first names', 'surnames'), columns):
      if len(column) < 2:
        raise FactsError(
          f'the {len(rows)} names have {len(column)} different {what}',
          hint='an excess compares a name with others: at least two first names and two surnames are needed',
        )
    first, last = (column.astype(np.int32) for column in columns)
    return cls(first, last, np.stack(indices, 1), tuple(before.tolist()), tuple(rows))

  @property
  def shape(self) -> tuple[int, int]:
    """Numbers of first names and of surnames."""
    return len(self.first), len(self.last)

  @functools.cached_property
  def unlisted(self) -> Int[np.ndarray, 'others 2']:
    """Indices of all pairs that are not listed."""
    others = np.ones(self.shape, bool)
    others[tuple(self.pairs.T)] = False
    return np.argwhere(others)

  def rows(self, pairs: Int[np.ndarray, 'pairs 2']) -> Int32[np.ndarray, 'pairs T']:
    """Tokens of some pairs: the prefix, the first name and the surname."""
    before = np.broadcast_to(np.array(self.prefix, np.int32), (len(pairs), len(self.prefix)))
    first, last = self.first[pairs[:, 0]], self.last[pairs[:, 1]]
    return np.concatenate([before, first[:, None], last[:, None]], axis=1)


def _as_ids(name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
  found = as_host(name, ids, FactsError)
  if found.ndim != 1 or (found.size and found.dtype.kind not in 'iu'):
    raise FactsError(f'{name} is not a row of token ids: {ids!r:.100}')
  if found.size and (found.min() < 0 or found.max() > np.iinfo(np.int32).max):
    raise FactsError(f'{name} has ids from {found.min()} to {found.max()}, which are not tokens')
  return found.astype(np.int64)


def _check_lengths(rows: Mapping[str, np.ndarray]) -> None:
  wrong = {text: len(ids) for text, ids in rows.items() if len(ids) != TOKENS}
  if wrong:
    shown = ', '.join(f'{text!r} has {n}' for text, n in [*wrong.items()][:8])
    more = f', and {len(wrong) - 8} more' if len(wrong) > 8 else ''
    raise FactsError(
      f'{len(wrong)} of {len(rows)} names are not {TOKENS} tokens: {shown}{more}',
      cause='a tokenizer splits rare surnames, and a first name may need a space before it',
      hint='leave these names out, and state how many there were',
    )


def _check_unique(table: np.ndarray, labels: Sequence[str]) -> None:
  _, first, count = np.unique(table, axis=0, return_index=True, return_counts=True)
  if (count > 1).any():
    i = first[count > 1][0]
    same = [label for label, row in zip(labels, table) if (row == table[i]).all()]
    raise FactsError(f'the names {same} have the same tokens {table[i].tolist()}')
