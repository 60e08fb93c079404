"""Requests, tokens and cost, by latent and scorer.

    ask = Ledger(Cached(Endpoint(...), 'out/replies.jsonl'))
    ...
    print(ask.table(by=(1,)))               a row for each second part of the tags, such as the scorers
    ask.rows(by=(0,))                       a row for each latent
    Path('ledger.csv').write_text(ask.csv())

    tag          requests  hits  failed  tokens_in  tokens_out      cost
    detection        1600     0       3    112,412       1,600  0.017822
    explanation        40     0       0     31,204       2,115  0.005950
    total            1640     0       3    143,616       3,715  0.023772

Tags of requests state who asks: (latent, scorer). A hit is an answer out of a cache: it is counted, and costs nothing.
A failed request costs what its attempts may have cost. Replies are counted as they arrive, so that a run that was
interrupted has counted what it paid.

Sharp edge: a ledger inside a cache, Cached(Ledger(...)), sees no hits.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import threading
from collections.abc import Sequence

from mechjax.providers.budget import add_usages
from mechjax.providers.checks import hear_once
from mechjax.providers.exchange import escape
from mechjax.providers.requests import Answer, Failed, Listener, Provider, Reply, Request, Usage

COUNTS = ('requests', 'hits', 'failed', 'tokens_in', 'tokens_out', 'cost')
_FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n')


@dataclasses.dataclass(frozen=True)
class LedgerRow:
  """Sums over some requests.

  Attributes:
    tag: the parts of the tag that they share.
    requests: number of requests.
    hits: answers out of a cache.
    failed: requests without an answer.
    tokens_in: tokens of prompts.
    tokens_out: generated tokens.
    cost: in the currency of the prices.
  """

  tag: tuple[str, ...]
  requests: int = 0
  hits: int = 0
  failed: int = 0
  tokens_in: int = 0
  tokens_out: int = 0
  cost: float = 0.0


class Ledger:
  """A `Provider` that counts the replies of another one.

  Attributes:
    ask: the provider.
  """

  def __init__(self, ask: Provider) -> None:
    self.ask = ask
    self._lock = threading.Lock()
    self._rows: dict[tuple[str, ...], LedgerRow] = {}

  @property
  def identity(self) -> str:
    """Identity of the provider."""
    return self.ask.identity

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests; see `Provider`."""
    requests, heard = list(requests), set[int]()

    def hear(number: int, reply: Reply) -> None:
      hear_once(heard, number, len(requests), self.identity)
      self._count(requests[number].tag, reply)
      if listener is not None:
        listener(number, reply)

    replies = self.ask(requests, hear)
    for number, reply in enumerate(replies):
      if number not in heard:  # a provider that does not call its listener
        hear(number, reply)
    return replies

  def rows(self, by: Sequence[int] | None = None) -> list[LedgerRow]:
    """Sums by tag, in the order of the tags; numbers are ordered as numbers.

    Args:
      by: places of the parts of the tags that rows differ by, such as (1,) for scorers; None for complete tags. A tag
        without such a part has '' there.
    """
    with self._lock:
      rows = [*self._rows.values()]
    groups: dict[tuple[str, ...], list[LedgerRow]] = {}
    for row in rows:
      tag = row.tag
      if by is not None:
        tag = tuple(tag[place] if 0 <= place < len(tag) else '' for place in by)
      groups.setdefault(tag, []).append(row)
    return [_add(tag, groups[tag]) for tag in sorted(groups, key=_order)]

  @property
  def total(self) -> LedgerRow:
    """Sums over all requests."""
    with self._lock:
      return _add(('total',), [*self._rows.values()])

  def table(self, by: Sequence[int] | None = None) -> str:
    """The rows and the total as text with aligned columns."""
    lines: list[tuple[str, ...]] = [('tag', *COUNTS)]
    for row in [*self.rows(by), self.total]:
      tag = escape(' / '.join(row.tag))
      counts = [f'{getattr(row, name):,}' for name in COUNTS[:-1]]
      lines.append((tag, *counts, f'{row.cost:.6f}'))
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return '\n'.join(
      '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )

  def csv(self, by: Sequence[int] | None = None) -> str:
    """The rows as CSV, a column for each part of the tag; a part that would start a formula begins with '."""
    rows = self.rows(by)
    n_parts = max((len(row.tag) for row in rows), default=0)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*(f'tag_{n}' for n in range(n_parts)), *COUNTS])
    for row in rows:
      parts = [*row.tag, *[''] * (n_parts - len(row.tag))]
      writer.writerow([*map(_quote, parts), *(getattr(row, name) for name in COUNTS)])
    return text.getvalue()

  def _count(self, tag: tuple[str, ...], reply: Reply) -> None:
    failed = isinstance(reply, Failed)
    hit = isinstance(reply, Answer) and reply.cached
    usage = Usage() if hit else reply.usage
    one = LedgerRow(tag, 1, int(hit), int(failed), usage.tokens_in, usage.tokens_out, usage.cost)
    with self._lock:
      self._rows[tag] = _add(tag, [self._rows.get(tag, LedgerRow(tag)), one])


def _add(tag: tuple[str, ...], rows: Sequence[LedgerRow]) -> LedgerRow:
  usage = add_usages([Usage(row.tokens_in, row.tokens_out, row.cost) for row in rows])
  requests, hits, failed = (sum(getattr(row, n) for row in rows) for n in COUNTS[:3])
  return LedgerRow(tag, requests, hits, failed, usage.tokens_in, usage.tokens_out, usage.cost)


def _order(tag: tuple[str, ...]) -> list[tuple[int, int, str]]:
  plain = [part.isascii() and part.isdigit() and len(part) < 20 for part in tag]
  return [(0, int(part), part) if number else (1, 0, part) for part, number in zip(tag, plain)]


def _quote(cell: str) -> str:
  return f"'{cell}" if cell.startswith(_FORMULA) else cell
