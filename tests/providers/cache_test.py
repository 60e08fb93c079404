"""Answers on disk: kept as they arrive, restored bit for bit, and never asked for twice."""

import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.errors import ProviderError
from mechjax.providers import (
  Answer,
  Cached,
  ChoiceRequest,
  Failed,
  LossRequest,
  Message,
  Scripted,
  TableRequest,
  TextRequest,
  Usage,
)
from mechjax.providers import cache as cache_room
from tests.providers.serving import ask

USER = (Message('user', 'U'),)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'a' / 'replies.jsonl'


class Counting:
  """A provider that writes down what it is asked."""

  def __init__(self, function=lambda r: f'of {r.messages[0].content}', identity='counting'):
    self.asked, self.identity = [], identity
    self._ask = Scripted(function, identity)

  def __call__(self, requests, listener=None):
    self.asked += requests
    return self._ask(requests, listener)


def texts(replies):
  return [reply.text for reply in replies]


def test_a_second_run_asks_nothing(path):
  requests = [ask(name) for name in 'abc']
  first, second = Counting(), Counting()
  fresh = Cached(first, path)(requests)
  kept = Cached(second, path)(requests)
  assert first.asked == requests
  assert second.asked == []
  assert texts(kept) == texts(fresh)
  assert [reply.cached for reply in fresh] == [False] * 3
  assert all((r.cached, r.attempts, r.usage) == (True, 0, Usage()) for r in kept)


def test_only_what_is_missing_is_asked_and_order_is_kept(path):
  Cached(Counting(), path)([ask('b'), ask('d')])
  inner, heard = Counting(), {}
  replies = Cached(inner, path)([ask(n) for n in 'abcde'], heard.__setitem__)
  assert inner.asked == [ask(n) for n in 'ace']
  assert texts(replies) == [f'of Who is it?\n{n}' for n in 'abcde']
  assert [heard[n] for n in range(5)] == replies


def test_a_request_that_occurs_several_times_in_a_call_is_asked_once(path):
  inner, heard = Counting(lambda r: Answer('x', usage=Usage(3, 1, 0.5))), []
  replies = Cached(inner, path)(
    [ask('a'), ask('b'), ask('a', tag=('1',)), ask('a')], lambda n, _: heard.append(n)
  )
  assert inner.asked == [ask('a'), ask('b')]
  assert [reply.cached for reply in replies] == [False, False, True, True]
  assert sum(reply.usage.cost for reply in replies) == 1.0
  assert sorted(heard) == [0, 1, 2, 3]


def test_failed_replies_are_not_kept_and_are_asked_again(path):
  inner = Counting(lambda r: Failed('busy', 3, Usage(1, 1, 1.0)))
  ask_all = Cached(inner, path)
  replies = ask_all([ask('a'), ask('a')])
  assert replies[0] == Failed('busy', 3, Usage(1, 1, 1.0))
  assert replies[1] == Failed('busy', 0)
  ask_all([ask('a')])
  assert len(inner.asked) == 2
  assert not path.exists()


@pytest.mark.parametrize(
  'change',
  [
    {'messages': (Message('user', 'V'),)}, {'messages': (Message('system', 'U'),)}, {'max_tokens': 9},
    {'temperature': 0.5},
  ],
)  # fmt: skip
def test_everything_that_an_answer_depends_on_is_in_the_key(path, change):
  base = {'messages': USER, 'max_tokens': 8, 'temperature': 0.0}
  inner = Counting()
  Cached(inner, path)([TextRequest(**base), TextRequest(**base | change)])
  Cached(inner, path)([TextRequest(**base, tag=('other',))])
  assert len(inner.asked) == 2
  other = Counting(identity='another model')
  Cached(other, path)([TextRequest(**base)])
  assert len(other.asked) == 1


floats = st.floats(0, 1) | st.sampled_from([5e-324, 1e-308, 0.1 + 0.2, 1 / 3, -0.0])


@given(
  st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=5),
  st.floats(allow_nan=False, allow_infinity=False),
)
@settings(max_examples=40)
def test_probabilities_and_losses_return_bit_for_bit(rows, loss):
  table = np.array(rows) / 3
  answers = {
    TableRequest(USER, ('p',) * len(rows), ('a', 'b', 'c')): table,
    ChoiceRequest(USER, ('a', 'b', 'c')): table[0],
    LossRequest(USER, 't'): loss,
  }
  with tempfile.TemporaryDirectory() as directory:
    path, inner = pathlib.Path(directory) / 'replies.jsonl', Counting(identity='x')
    Cached(Scripted(answers.__getitem__, 'x'), path)([*answers])
    kept = Cached(inner, path)([*answers])
  assert inner.asked == []
  assert kept[0].probabilities.tobytes() == table.tobytes()
  assert kept[1].probabilities.tobytes() == table[:1].tobytes()
  assert np.float64(kept[2].loss).tobytes() == np.float64(loss).tobytes()
  assert not kept[0].probabilities.flags.writeable


@given(st.text(st.sampled_from('a"\\\n\r\u2028\ud800é😀\x00{')))
@settings(max_examples=40)
def test_any_text_returns_and_is_one_line(text):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / 'replies.jsonl'
    Cached(Scripted(lambda r: text, 'x'), path)([ask('a')])
    assert len(path.read_bytes().splitlines()) == 2
    assert texts(Cached(Counting(identity='x'), path)([ask('a')])) == [text]


def test_an_answer_is_on_disk_before_the_listener_hears_it(path):
  lines = []
  Cached(Counting(), path)(
    [ask(n) for n in 'abc'], lambda n, _: lines.append(len(path.read_text().splitlines()))
  )
  assert lines == [2, 3, 4]


def test_an_interrupt_keeps_what_arrived(path):
  def listen(number, reply):
    if number == 1:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Cached(Counting(), path)([ask(n) for n in 'abc'], listen)
  inner = Counting()
  Cached(inner, path)([ask(n) for n in 'abc'])
  assert {*inner.asked} <= {ask('c')}


# --- damage -------------------------------------------------------------------------------------------


def fill(path):
  Cached(Counting(), path)([ask(n) for n in 'abc'])
  return path.read_bytes()


def reopen(path, names='abc'):
  inner = Counting()
  replies = Cached(inner, path)([ask(n) for n in names])
  assert texts(replies) == [f'of Who is it?\n{n}' for n in names]
  return [request.messages[0].content[-1] for request in inner.asked]


def test_a_line_that_was_cut_costs_one_request_and_the_next_append_repairs_the_file(
  path,
):
  whole = fill(path)
  ends = [n for n, byte in enumerate(whole) if byte == ord('\n')]
  lines = whole.splitlines(keepends=True)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    near_ends = {end + shift for end in ends for shift in (-1, 0, 1)}
    for size in sorted({0, *near_ends, *range(5, len(whole), 23)}):
      path.write_bytes(whole[:size])
      n_kept = sum(size > end for end in ends)
      assert reopen(path) == [*'abc'[max(0, n_kept - 1) :]]
      kept, left = b''.join(lines[:n_kept]), b''.join(lines[n_kept:])
      cut = whole[len(kept) : size]
      repaired = cut + b'\n' if cut and n_kept else b''
      assert path.read_bytes() == kept + repaired + left


def test_a_line_that_was_cut_and_left_behind_is_named_by_the_next_run(path):
  path.write_bytes(fill(path)[:-5])
  assert reopen(path) == ['c']
  with pytest.warns(UserWarning, match='1 damaged lines.*line 4'):
    assert reopen(path) == []


@pytest.mark.parametrize(
  'line',
  [
    b'{', b'[]', b'3', b'null', b'{"key": 3}', b'\xff', b'[' * 100_000, b'{"key": "x", "text": "", "loss": null}',
    b'{"key": "x", "text": "", "loss": null, "probabilities": [0.5]}',
    b'{"key": "x", "text": "", "loss": null, "probabilities": [[0.5], [0.5, 0.5]]}',
    b'{"key": "x", "text": "", "loss": null, "probabilities": [["a"]]}',
  ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle_is_named_and_the_others_are_kept(path, line):
  lines = fill(path).splitlines(keepends=True)
  path.write_bytes(b''.join([*lines[:2], line + b'\n', *lines[3:]]))
  with pytest.warns(UserWarning, match='1 damaged lines, which are asked again: line 3'):
    assert reopen(path) == ['b']


@pytest.mark.parametrize(
  'record',
  [
    {'text': 3}, {'loss': 1.0}, {'probabilities': [[0.5, 0.5]]}, {'text': None},
  ],
)  # fmt: skip
def test_an_edited_answer_that_does_not_fit_its_request_is_asked_again(path, record):
  fill(path)
  lines = path.read_text().splitlines()
  lines[2] = json.dumps(json.loads(lines[2]) | record)
  path.write_text('\n'.join(lines) + '\n')
  with pytest.warns(UserWarning, match='the answer to a TextRequest has'):
    assert reopen(path) == ['b']


@pytest.mark.parametrize(
  'contents',
  [
    b'a,b\n1,2\n',
    b'{"kind": "other"}\n',
    b'\n',
    b'\x00' * 50,
    b'{"kind": "mechjax replies", "version": 2}\n',
  ],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(path, contents):
  path.parent.mkdir()
  path.write_bytes(contents)
  with pytest.raises(ProviderError, match='does not hold replies'):
    Cached(Counting(), path)
  assert path.read_bytes() == contents


def test_a_file_that_another_one_replaced_is_not_appended_to(path):
  ask_all = Cached(Counting(), path)

  def listen(number, reply):
    path.write_text('mine\n')

  with pytest.raises(ProviderError, match='does not hold replies'):
    ask_all([ask('a'), ask('b')], listen)
  assert path.read_text() == 'mine\n'


def test_a_full_disk_stops_the_run(path, monkeypatch):
  ask_all = Cached(Counting(), path)
  monkeypatch.setattr(cache_room.os, 'write', lambda fd, data: len(data) - 1)
  with pytest.raises(OSError, match='the disk is full'):
    ask_all([ask('a')])


# --- providers with mistakes --------------------------------------------------------------------------


class Silent(Counting):
  """A provider that does not call its listener."""

  def __call__(self, requests, listener=None):
    return super().__call__(requests)


def test_a_provider_that_does_not_call_its_listener_is_kept_too(path):
  heard = []
  Cached(Silent(), path)([ask('a'), ask('b')], lambda n, _: heard.append(n))
  assert sorted(heard) == [0, 1]
  assert reopen(path, 'ab') == []


class Short(Counting):
  """A provider that loses a reply."""

  def __call__(self, requests, listener=None):
    return super().__call__(requests)[1:]


def test_a_provider_that_loses_a_reply_is_an_error(path):
  with pytest.raises(ProviderError, match='1 replies to 2 requests'):
    Cached(Short(), path)([ask('a'), ask('b')])


class Wrong(Counting):
  """A provider that answers a choice with something else."""

  def __call__(self, requests, listener=None):
    return [Answer(probabilities=np.array([[0.5, np.nan]])) for _ in requests]


def test_an_answer_with_impossible_numbers_has_failed_and_is_not_kept(path):
  (reply,) = Cached(Wrong(), path)([ChoiceRequest(USER, ('a', 'b'))])
  assert isinstance(reply, Failed)
  assert 'not finite' in reply.reason
  assert not path.exists()


# --- several processes --------------------------------------------------------------------------------

PROGRAM = """
import sys
from mechjax.providers import Cached, Scripted
from tests.providers.serving import ask
path, first = sys.argv[1], int(sys.argv[2])
ask_all = Cached(Scripted(lambda request: 'x' * 3000, 'counting'), path)
print('ready', flush=True)
sys.stdin.readline()
for n in range(first, first + 200):
  ask_all([ask(str(n))])
"""


def test_two_processes_append_to_one_file(path):
  programs = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(path), first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for first in ('0', '100')
  ]  # fmt: skip
  for program in programs:
    assert program.stdout.readline() == 'ready\n'
  for program in programs:
    program.stdin.write('\n')
    program.stdin.flush()
  for program in programs:
    program.communicate(timeout=120)
    assert program.returncode == 0
  inner = Counting()
  kept = Cached(inner, path)([ask(str(n)) for n in range(300)])
  assert inner.asked == []
  assert {*texts(kept)} == {'x' * 3000}
  records = [json.loads(line) for line in path.read_text().splitlines()]
  assert 300 <= len(records[1:]) <= 400
