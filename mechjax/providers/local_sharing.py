"""Prefixes that rows of tokens share, so that each is computed once.

Hundreds of requests of a scorer begin with the same instructions and the same worked examples, and dozens of these with
the same explanation. `group_rows` finds both: a tree of groups, each with a prefix that all of its rows begin with.

    group = group_rows([(1, 2, 3, 4), (1, 2, 3, 5), (1, 7)])
    group.prefix         1
    group.rows           rows that continue from here, (0, 1, 2)
    group.inner          groups with longer prefixes; here () as they save too little

The keys and values of a prefix are computed in one row, from those of the group around it, and then repeated.

Sharp edge: a group of its own fills its batches less well than a part of a larger one, and costs a pass over its
prefix. So it is made only if it saves `MIN_SAVED` tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

MIN_SAVED = 256
"""Number of tokens that a group within a group saves at least."""


@dataclasses.dataclass(frozen=True)
class PrefixGroup:
  """Rows that begin with the same tokens.

  Attributes:
    prefix: number of tokens that all rows share.
    rows: numbers of the rows that are not in an inner group.
    inner: groups of rows that share longer prefixes.
  """

  prefix: int
  rows: tuple[int, ...]
  inner: tuple[PrefixGroup, ...] = ()


def group_rows(heads: Sequence[tuple[int, ...]]) -> PrefixGroup:
  """Groups rows by what they share.

  Args:
    heads: the tokens of each row that it may share with others.

  Returns:
    The group of all rows.
  """
  order = sorted(range(len(heads)), key=lambda i: heads[i])
  return _group(heads, order)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
  """Number of leading tokens that are equal."""
  for i, (x, y) in enumerate(zip(a, b)):
    if x != y:
      return i
  return min(len(a), len(b))


def _group(heads: Sequence[tuple[int, ...]], order: Sequence[int]) -> PrefixGroup:
  """The group of rows in ascending order, whose first and last row share what all share."""
  prefix = common_prefix(heads[order[0]], heads[order[-1]])
  rows: list[int] = []
  inner: list[PrefixGroup] = []
  for _, found in itertools.groupby(order, lambda i: heads[i][prefix : prefix + 1]):
    members = list(found)
    longer = common_prefix(heads[members[0]], heads[members[-1]])
    if (len(members) - 1) * (longer - prefix) >= MIN_SAVED:
      inner.append(_group(heads, members))
    else:
      rows.extend(members)
  return PrefixGroup(prefix, tuple(rows), tuple(inner))
