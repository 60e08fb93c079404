"""Sums of a ledger against plain loops over the replies, and cells that cannot start a formula."""

import csv
import io
import random
import threading

import pytest

from mechjax.errors import ProviderError
from mechjax.providers import (
  Answer,
  Cached,
  Failed,
  Ledger,
  LedgerRow,
  Message,
  Scripted,
  TextRequest,
  Usage,
)
from tests.providers.serving import ask


def reply_of(request):
  name = request.messages[0].content.rpartition('\n')[2]
  luck = random.Random(name)
  usage = Usage(luck.randrange(100), luck.randrange(10), luck.randrange(64) / 64)
  return Failed('busy', 2, usage) if luck.random() < 0.3 else Answer(name, usage=usage)


def make_requests():
  luck = random.Random(1)
  scorers = ('detection', 'simulation')
  return [ask(f'n{n}', tag=(str(luck.randrange(12)), luck.choice(scorers))) for n in range(200)]


def sums(tag, requests, replies):
  usages = [reply.usage for reply in replies]
  return LedgerRow(
    tag, len(requests), sum(isinstance(r, Answer) and r.cached for r in replies),
    sum(isinstance(r, Failed) for r in replies),
    *(sum(getattr(u, n) for u in usages) for n in ('tokens_in', 'tokens_out', 'cost')),
  )  # fmt: skip


@pytest.mark.parametrize('by', [None, (0,), (1,), (1, 0), ()])
def test_rows_are_the_sums_of_the_replies_of_each_tag(by):
  requests, ledger = make_requests(), Ledger(Scripted(reply_of, concurrency=4))
  replies = ledger(requests)
  pairs = [
    (request.tag if by is None else tuple(request.tag[n] for n in by), request, reply)
    for request, reply in zip(requests, replies)
  ]
  tags = {tag for tag, _, _ in pairs}
  expected = [
    sums(tag, [r for t, r, _ in pairs if t == tag], [r for t, _, r in pairs if t == tag])
    for tag in tags
  ]
  rows = ledger.rows(by)
  assert sorted(rows, key=repr) == sorted(expected, key=repr)
  assert ledger.total == sums(('total',), requests, replies)
  if by == (0,):
    assert [row.tag[0] for row in rows] == [str(n) for n in range(12)]


def test_hits_are_counted_and_cost_nothing(tmp_path):
  requests = [ask('a', tag=('1',)), ask('b', tag=('1',)), ask('a', tag=('2',))]
  inner = Scripted(lambda r: Answer('x', usage=Usage(10, 1, 0.5)), 'x')
  ledger = Ledger(Cached(inner, tmp_path / 'replies.jsonl'))
  ledger(requests)
  ledger(requests)
  assert ledger.rows() == [LedgerRow(('1',), 4, 2, 0, 20, 2, 1.0), LedgerRow(('2',), 2, 2)]
  assert ledger.identity == 'x'


class Generous:
  """A provider whose answers out of a cache still state their usage."""

  identity = 'generous'

  def __call__(self, requests, listener=None):
    return [Answer('x', usage=Usage(10, 1, 0.5), cached=True) for _ in requests]


def test_the_usage_of_a_hit_is_not_counted_and_a_silent_provider_is():
  heard = []
  ledger = Ledger(Generous())
  ledger([ask('a'), ask('b')], lambda n, _: heard.append(n))
  assert ledger.total == LedgerRow(('total',), 2, 2)
  assert heard == [0, 1]


def test_what_arrived_before_an_interrupt_is_counted():
  def listen(number, reply):
    if number == 1:
      raise KeyboardInterrupt

  ledger = Ledger(Scripted(lambda r: Answer('x', usage=Usage(1, 1, 1.0))))
  with pytest.raises(KeyboardInterrupt):
    ledger([ask(n) for n in 'abc'], listen)
  assert ledger.total.cost >= 2


def test_threads_may_share_a_ledger():
  ledger = Ledger(Scripted(lambda r: Answer('x', usage=Usage(1, 2, 0.5)), concurrency=4))
  threads = [threading.Thread(target=ledger, args=([ask('a', tag=('1',))] * 50,)) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert ledger.rows() == [LedgerRow(('1',), 400, 0, 0, 400, 800, 200.0)]


def test_a_table_has_a_row_for_each_tag_and_one_for_the_total():
  ledger = Ledger(Scripted(lambda r: Answer('x', usage=Usage(1000, 2, 0.25))))
  ledger([ask('a', tag=('1', 'b')), ask('b', tag=('1', 'a\n\u202e'))])
  lines = ledger.table().splitlines()
  assert [line.split() for line in lines] == [
    ['tag', 'requests', 'hits', 'failed', 'tokens_in', 'tokens_out', 'cost'],
    ['1', '/', 'a\\n\\u202e', '1', '0', '0', '1,000', '2', '0.250000'],
    ['1', '/', 'b', '1', '0', '0', '1,000', '2', '0.250000'],
    ['total', '2', '0', '0', '2,000', '4', '0.500000'],
  ]
  assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize('start', ['=', '+', '-', '@', '\t', '\r', '\n'])
def test_no_cell_of_the_csv_starts_a_formula(start):
  tag = (f'{start}HYPERLINK("http://x")', 'a,"b"\n=c', '7')
  ledger = Ledger(Scripted(lambda r: 'x'))
  ledger([ask('a', tag=tag), ask('b', tag=('1',))])
  header, *rows = csv.reader(io.StringIO(ledger.csv(), newline=''))
  assert header == [
    'tag_0',
    'tag_1',
    'tag_2',
    'requests',
    'hits',
    'failed',
    'tokens_in',
    'tokens_out',
    'cost',
  ]
  assert [row[:3] for row in rows] == [['1', '', ''], [f"'{tag[0]}", *tag[1:]]]
  assert all(cell[:1] not in '=+-@\t\r\n' for row in rows for cell in row if cell)


def test_requests_may_come_from_a_generator():
  ledger = Ledger(Scripted(lambda r: 'x'))
  assert len(ledger(TextRequest((Message('user', c),)) for c in 'ab')) == 2


@pytest.mark.parametrize('wrap', [Ledger, lambda inner: Cached(inner, inner.path)])
@pytest.mark.parametrize('numbers', [(0, 0), (-1,), (2,), (True,), ('0',)])
def test_a_provider_that_calls_its_listener_with_other_numbers_is_refused(wrap, numbers, tmp_path):
  class Repeating:
    identity, path = 'repeating', tmp_path / 'replies.jsonl'

    def __call__(self, requests, listener=None):
      for number in numbers:
        listener(number, Answer('x'))
      return [Answer('x') for _ in requests]

  with pytest.raises(ProviderError, match='the listener was called with request'):
    wrap(Repeating())([ask('a'), ask('b')])
