"""Distributions that requests need, read batch by batch from rows that share their prefixes.

Two kinds of text cover all requests. In a `Passage` every token is known before: the loss of a text, and tables with
'unknown' behind each piece, so one pass reads all of its places. In `Turns` the model answers, and the answer is
written before the next place is reached; one answer at the end of a prompt is the shortest of these.

    turns = Turns(ids, answers=((5,), (6, 2)), later=())
    ((i, log_probs),) = read_all(passes, [turns], batch=16, share=True)      log_probs: float64 [places, answers]

An answer of several tokens has the product of their conditional probabilities. The first comes from the distribution
at the place; the others from one more pass over the tokens of the answer, which is not kept in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from mechjax.providers.local_logits import Found
from mechjax.providers.local_passes import Passes
from mechjax.providers.local_prompts import Ids
from mechjax.providers.local_sharing import PrefixGroup, group_rows

MIN_PREFIX = 16
"""Number of tokens from which a prefix has a pass of its own."""

LogProbs = Float64[np.ndarray, 'places answers']


@dataclasses.dataclass(frozen=True)
class Passage:
  """A text that is known, and places in it at which log-probabilities are read.

  Attributes:
    ids: its tokens.
    reads: places, in ascending order, and the ids whose log-probabilities as the next token are read; as many ids at
      each place.
  """

  ids: Ids
  reads: tuple[tuple[int, Ids], ...]

  @property
  def head(self) -> Ids:
    """The tokens before the first place."""
    return self.ids[: self.reads[0][0]]

  @property
  def kind(self) -> tuple[int, ...]:
    """Texts of one kind are read in one batch."""
    return (0,)


@dataclasses.dataclass(frozen=True)
class Turns:
  """A text in which the model chooses among answers, once or several times.

  Attributes:
    ids: the tokens before the first answer.
    answers: the tokens of each answer.
    later: the tokens between two answers, one less than there are places.
  """

  ids: Ids
  answers: tuple[Ids, ...]
  later: tuple[Ids, ...] = ()

  @property
  def head(self) -> Ids:
    """The tokens before the first place."""
    return self.ids[:-1]

  @property
  def kind(self) -> tuple[int, ...]:
    """Texts of one kind are read in one batch: tables apart from single answers."""
    return (1, bool(self.later))

  @property
  def longest(self) -> int:
    """Number of tokens of the longest answer."""
    return max(map(len, self.answers))


Item = Passage | Turns


def read_all(
  passes: Passes, items: Sequence[Item], batch: int, share: bool
) -> Iterator[tuple[int, LogProbs]]:
  """Reads the distributions of texts, and yields (number of the text, log-probabilities) after each batch.

  Args:
    passes: of the model.
    items: the texts.
    batch: maximum number of rows.
    share: whether a prefix that rows share is computed once.
  """
  for kind in sorted({item.kind for item in items}):
    numbers = [i for i, item in enumerate(items) if item.kind == kind]
    chosen = [items[i] for i in numbers]
    if share and passes.shares and len(chosen) > 1:
      group = group_rows([item.head for item in chosen])
    else:
      group = PrefixGroup(0, tuple(range(len(chosen))))
    for i, log_probs in _read_group(passes, chosen, group, batch, None, 0):
      yield numbers[i], log_probs


def _read_group(
  passes: Passes, items: Sequence[Item], group: PrefixGroup, batch: int, outer: Any, used: int
) -> Iterator[tuple[int, LogProbs]]:
  """Reads a group, whose first `used` tokens are those of the row `outer`."""
  prefix = used
  if group.prefix - used >= MIN_PREFIX:
    member = _first_row(group)
    new = items[member].ids[used : group.prefix]
    outer = _continue(passes, outer, 1, passes.columns_of(len(new)))
    outer, _ = passes.extend(outer, [new], [[]])
    prefix = group.prefix
  for inner in group.inner:
    yield from _read_group(passes, items, inner, batch, outer, prefix)
  # Neighbours are similar in length, and rows that need memory come first.
  order = sorted(group.rows, key=lambda i: _size(items[i]), reverse=True)
  for start in range(0, len(order), batch):
    numbers = order[start : start + batch]
    rows = [items[i] for i in numbers]
    read = _read_passages if isinstance(rows[0], Passage) else _take_turns
    yield from zip(numbers, read(passes, rows, outer, prefix, _round_rows(len(rows), batch)))


def _read_passages(
  passes: Passes, items: Sequence[Any], outer: Any, used: int, n_rows: int
) -> list[LogProbs]:
  new = [item.ids[used:] for item in items]
  rows = _continue(passes, outer, n_rows, passes.columns_of(max(map(len, new))))
  reads = [[(place - used, ids) for place, ids in item.reads] for item in items]
  _, found = passes.extend(rows, new, reads)
  return [np.stack(row) for row in found]


def _take_turns(
  passes: Passes, items: Sequence[Any], outer: Any, used: int, n_rows: int
) -> list[LogProbs]:
  """Reads each place, writes the likeliest answer there, and continues to the next place."""
  new: list[Ids] = [item.ids[used:] for item in items]
  longest = max(item.longest for item in items)
  n_turns = max(len(item.later) for item in items)
  columns = passes.columns_of(max(map(len, new))) + passes.columns_of(longest - 1)
  for i in range(n_turns):
    between = max(len(item.later[i]) for item in items if i < len(item.later))
    columns += passes.columns_of(longest + between)
  rows = _continue(passes, outer, n_rows, columns)
  found: list[list[np.ndarray]] = [[] for _ in items]
  for i in range(n_turns + 1):
    running = [i <= len(item.later) for item in items]
    firsts = [tuple(answer[0] for answer in item.answers) for item in items]
    reads = [[(len(n) - 1, ids)] if on else [] for n, ids, on in zip(new, firsts, running)]
    rows, first = passes.extend(rows, new, reads)
    totals = _add_rest(passes, rows, items, running, first)
    for b, item in enumerate(items):
      new[b] = ()
      if running[b]:
        found[b].append(totals[b])
        if i < len(item.later):
          new[b] = item.answers[int(np.argmax(totals[b]))] + item.later[i]
  return [np.stack(row) for row in found]


def _add_rest(
  passes: Passes, rows: Any, items: Sequence[Turns], running: Sequence[bool], first: Found
) -> list[np.ndarray]:
  """Log-probabilities of whole answers, from those of their first tokens."""
  totals = [row[0].copy() if row else np.empty(0) for row in first]
  several = [
    [k for k, answer in enumerate(item.answers) if on and len(answer) > 1]
    for item, on in zip(items, running)
  ]
  for n in range(max(map(len, several))):
    chosen = [row[n] if n < len(row) else None for row in several]
    answers = [() if k is None else item.answers[k] for k, item in zip(chosen, items)]
    reads = [[(i, answer[i + 1 : i + 2]) for i in range(len(answer) - 1)] for answer in answers]
    _, rest = passes.extend(rows, [answer[:-1] for answer in answers], reads, keep=True)
    for total, k, values in zip(totals, chosen, rest):
      if k is not None:
        total[k] += sum(float(value[0]) for value in values)
  return totals


def _continue(passes: Passes, outer: Any, n_rows: int, columns: int) -> Any:
  """Rows that continue from one row, or begin, with room for more columns."""
  if outer is None:
    return passes.start(n_rows, columns)
  return passes.spread(outer, n_rows, passes.columns_in(outer) + columns)


def _first_row(group: PrefixGroup) -> int:
  return group.rows[0] if group.rows else _first_row(group.inner[0])


def _size(item: Item) -> int:
  """Number of tokens, apart from answers."""
  return len(item.ids) + (sum(map(len, item.later)) if isinstance(item, Turns) else 0)


def _round_rows(n: int, batch: int) -> int:
  """Number of rows of a program: a power of two, or the whole batch."""
  return min(batch, 1 << (n - 1).bit_length())
