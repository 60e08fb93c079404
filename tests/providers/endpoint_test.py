"""An endpoint against a loopback service that fails: nothing is lost, order is kept, and each usage is counted."""

import collections
import email.utils
import itertools
import math
import os
import random
import signal
import threading
import time

import pytest

from mechjax.errors import ProviderError
from mechjax.providers import (
  Answer,
  Budget,
  Endpoint,
  Failed,
  Message,
  Prices,
  Retries,
  TextRequest,
  Usage,
)
from mechjax.providers import http as http_room
from tests.providers.serving import (
  FAST,
  Service,
  ask,
  cut,
  drop,
  hang,
  raw,
  status,
  trickle,
  wrap,
)  # fmt: skip

PRICES = Prices(input_per_million=1e6, output_per_million=2e6)
STATED = Usage(10, 2, 14.0)
PROMPT = len('Who is it?\na') + 16 + 128
BOUND = Usage(PROMPT, 8, PROMPT + 16.0)
"""Upper bound of `ask` with a name of one letter: bytes, 16 tokens for a message, 128 for a request, and max_tokens."""


def make_endpoint(service, **settings):
  return Endpoint(service.url, 'm', **{'retries': FAST, 'prices': PRICES} | settings)


def test_replies_are_in_the_order_of_the_requests_although_they_arrive_in_another():
  names, heard = [f'n{i}' for i in range(64)], []

  def answer(body):
    number = int(body['messages'][-1]['content'].rpartition('n')[2])
    while number % 2 == 0 and number + 1 not in heard:  # is answered after the next one was heard
      time.sleep(0.002)
    return wrap(body, names[number])

  with Service(answer) as service:
    replies = make_endpoint(service, concurrency=16)(
      [ask(n) for n in names], lambda number, reply: heard.append(number)
    )
  assert [reply.text for reply in replies] == names
  assert sorted(heard) == list(range(64))


@pytest.mark.parametrize(
  ('fault', 'paid'),
  [
    (status(429, {'Retry-After': '0'}), False),
    (status(408), False),
    (status(500), False),
    (status(503, {'Retry-After': 'soon'}), False),
    (drop, True),
    (cut, True),
    (raw(b'{"choices": ['), True),
    (raw(b'\xff\xfe'), True),
    (raw(b'[' * 100_000), True),
    (raw(b'{"error": "busy"}'), True),
    (raw(b'[]'), True),
    (raw(b'{"choices": [{"message": {}}]}'), True),
  ],
)  # fmt: skip
def test_a_fault_is_repeated_and_is_paid_only_if_the_service_may_have_answered(fault, paid):
  budget = Budget()
  with Service(faults={'a': [fault, fault]}) as service:
    (reply,) = make_endpoint(service, budget=budget)([ask('a')])
  expected = [BOUND, BOUND, STATED] if paid else [STATED]
  assert isinstance(reply, Answer)
  assert (reply.text, reply.attempts) == ('I am a', 3)
  assert reply.usage == budget.spent == add(expected)


def add(usages):
  return Usage(*(sum(getattr(u, n) for u in usages) for n in ('tokens_in', 'tokens_out', 'cost')))


@pytest.mark.parametrize('fault', [hang, trickle])
def test_a_service_that_does_not_finish_in_time_is_asked_again(fault):
  with Service(faults={'a': [fault]}) as service:
    (reply,) = make_endpoint(service, timeout=1.0)([ask('a')])
  assert reply.text == 'I am a'
  assert reply.attempts >= 2
  assert reply.usage.tokens_in >= PROMPT + 10


def test_a_service_that_is_not_there_fails_without_being_paid():
  with Service() as service:
    pass
  (reply,) = make_endpoint(service, retries=Retries(2, 0.001))([ask('a')])
  assert reply == Failed(reply.reason, attempts=3)
  assert 'no connection' in reply.reason


def test_an_answer_without_usage_counts_its_upper_bound():
  with Service(lambda body: wrap(body, 'yes', tokens=None)) as service:
    (reply,) = make_endpoint(service)([ask('a')])
  assert reply.usage == BOUND


@pytest.mark.parametrize('stated', [(-1, 2), (True, 2), ('10', 2), (10.5, 2), (10**30, 2)])
def test_a_usage_that_is_not_a_count_is_replaced_by_the_upper_bound(stated):
  with Service(lambda body: wrap(body, 'yes', tokens=stated)) as service:
    (reply,) = make_endpoint(service)([ask('a')])
  assert reply.usage == BOUND


def test_many_requests_with_many_faults_lose_nothing_keep_order_and_cost_what_the_service_counts():
  luck = random.Random(0)
  kinds = [status(429, {'Retry-After': '0'}), status(500), drop, cut, raw(b'{'), raw(b'{}')]
  names = [chr(ord('a') + n) + x for n in range(26) for x in 'xy']
  faults = {name: luck.choices(range(6), k=luck.randrange(4)) for name in names}
  budget = Budget()
  with Service(
    faults={name: [kinds[k] for k in listed] for name, listed in faults.items()}
  ) as service:
    replies = make_endpoint(service, concurrency=8, budget=budget)([ask(n) for n in names])
    counts = collections.Counter(service.asked)
  assert [reply.text for reply in replies] == [f'I am {name}' for name in names]
  for name, reply in zip(names, replies):
    paid = sum(k >= 2 for k in faults[name])
    bound = Usage(PROMPT + 1, 8, PROMPT + 17.0)
    assert reply.usage == add([STATED] + [bound] * paid)
    assert reply.attempts == counts[name] == 1 + len(faults[name])
  assert budget.spent == add([reply.usage for reply in replies])


def test_repetitions_end_and_the_other_requests_are_answered():
  with Service(faults={'b': [status(500)] * 9}) as service:
    replies = make_endpoint(service, retries=Retries(2, 0.001))([ask(n) for n in 'abc'])
    counts = collections.Counter(service.asked)
  assert [reply.attempts for reply in replies] == [1, 3, 1]
  assert [isinstance(reply, Failed) for reply in replies] == [False, True, False]
  assert counts['b'] == 3
  assert 'status 500' in replies[1].reason


@pytest.mark.parametrize('number', [400, 401, 403, 404, 409, 422])
def test_other_client_errors_fail_at_once_with_the_body(number):
  body = b'{"error": "max_tokens is\\n\\u202e not known"}'
  with Service(faults={'a': [status(number, {}, body)]}) as service:
    (reply,) = make_endpoint(service)([ask('a')])
    assert service.asked == ['a']
  assert (reply.attempts, reply.usage) == (1, Usage())
  assert f'status {number}' in reply.reason
  assert 'max_tokens is' in reply.reason
  assert reply.reason.isprintable()


def test_the_body_of_an_error_is_cut_and_escaped():
  body = '<b>\x1b[31m\u202e' + 'long ' * 1000
  with Service(faults={'a': [status(400, {}, body.encode())]}) as service:
    (reply,) = make_endpoint(service)([ask('a')])
  assert len(reply.reason) < 400
  assert reply.reason.isprintable()
  assert '\\x1b[31m\\u202e' in reply.reason


@pytest.mark.parametrize('number', [301, 302, 307, 308])
def test_redirects_are_not_followed(number, monkeypatch):
  monkeypatch.setenv('A_KEY', 'a-secret-of-mine')
  with Service() as other:
    with Service(faults={'a': [status(number, {'Location': other.url + '/x'})]}) as service:
      (reply,) = make_endpoint(service, key_variable='A_KEY')([ask('a')])
  assert other.asked == []
  assert isinstance(reply, Failed)
  assert other.url in reply.reason


# --- waiting ------------------------------------------------------------------------------------------


def gaps(service):
  moments = [one.moment for one in service.arrived]
  return [after - before for before, after in itertools.pairwise(moments)]


def test_retry_after_in_seconds_is_obeyed():
  with Service(
    faults={'a': [status(429, {'Retry-After': '0.3'}), status(503, {'Retry-After': '0.2'})]}
  ) as service:
    make_endpoint(service)([ask('a')])
    first, second = gaps(service)
  assert first >= 0.3
  assert second >= 0.2


def test_retry_after_as_a_date_is_compared_with_the_clock_of_the_service():
  past = 1_000_000_000
  headers = {'Date': email.utils.formatdate(past, usegmt=True)}
  headers['Retry-After'] = email.utils.formatdate(past + 1, usegmt=True)
  with Service(faults={'a': [status(429, headers)]}) as service:
    make_endpoint(service)([ask('a')])
    assert gaps(service)[0] >= 1.0


def test_a_request_to_wait_holds_the_other_requests_of_the_endpoint_too():
  with Service(faults={'a': [status(429, {'Retry-After': '0.4'})]}) as service:
    replies = make_endpoint(service, concurrency=1, retries=Retries(0))([ask('a'), ask('b')])
    assert [type(reply) for reply in replies] == [Failed, Answer]
    assert gaps(service)[0] >= 0.4


def test_a_wait_that_is_too_long_ends_the_request():
  with Service(faults={'a': [status(429, {'Retry-After': '3600'})]}) as service:
    (reply,) = make_endpoint(service)([ask('a')])
    assert service.asked == ['a']
  assert '3600 s' in reply.reason


# --- stopping -----------------------------------------------------------------------------------------


@pytest.fixture
def heeded_interrupts():
  """Interrupts raise KeyboardInterrupt; a shell's background job inherits that they are ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('heeded_interrupts')
def test_an_interrupt_stops_the_threads_and_keeps_what_arrived():
  before, heard = set(threading.enumerate()), []
  with Service(faults={'c': [hang], 'd': [hang]}) as service:

    def interrupt():
      while len(heard) < 2 or {'c', 'd'} - {*service.asked}:
        time.sleep(0.01)
      os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
      make_endpoint(service, concurrency=2)(
        [ask(n) for n in 'abcdef'], lambda n, reply: heard.append((n, reply.text))
      )
    left = [t for t in threading.enumerate() if t not in before and 'work' in t.name]
    assert not left, 'threads that wait for a service that hangs'
    assert {'e', 'f'}.isdisjoint(service.asked)
  assert sorted(heard) == [(0, 'I am a'), (1, 'I am b')]


def test_an_error_of_the_listener_stops_a_wait_for_the_service():
  def listen(number, reply):
    raise KeyError('full')

  with Service(faults={'b': [status(429, {'Retry-After': '4'})] * 9}) as service:
    with pytest.raises(KeyError, match='full'):
      make_endpoint(service, concurrency=2)([ask('a'), ask('b')], listen)


# --- connections --------------------------------------------------------------------------------------


def test_connections_stay_open_within_a_call_and_between_calls():
  with Service() as service:
    endpoint = make_endpoint(service, concurrency=2)
    endpoint([ask(f'{n}') for n in range(20)])
    endpoint([ask(f'{n}') for n in range(20, 40)])
    assert len(service.asked) == 40
    assert service.connections <= 2


def test_a_connection_that_the_service_closed_in_the_meantime_is_replaced_before_it_is_used():
  headers = {'Connection': 'close'}
  with Service() as service:
    endpoint = make_endpoint(service, concurrency=1)
    endpoint([ask('a')])
    service.faults['b'] = [status(400, headers)]
    endpoint([ask('b')])
    (reply,) = endpoint([ask('c')])
  assert (reply.attempts, reply.usage) == (1, STATED)


def test_a_reply_that_is_too_large_is_refused(monkeypatch):
  monkeypatch.setattr(http_room, 'MAX_BODY', 1000)
  with Service(faults={'a': [raw(b' ' * 1001)]}) as service:
    replies = make_endpoint(service)([ask('a'), ask('b')])
    assert sorted(service.asked) == ['a', 'b']
  assert replies[0] == Failed(replies[0].reason, 1, BOUND)
  assert 'more than 1,000 bytes' in replies[0].reason
  assert replies[1].text == 'I am b'


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'url',
  [
    'ftp://host/v1', 'file:///etc/passwd', 'host/v1', 'https://', '', None, 'https://a b/v1', 'https://h\n/v1',
    'https://user:a-secret-of-mine@host/v1', 'https://host/v1?key=a-secret-of-mine', 'https://host/#a-secret-of-mine',
    'http://host:99999/v1', 'http://[::1', 'http://h:0',
  ],
)  # fmt: skip
def test_other_addresses_are_refused_without_being_shown(url):
  with pytest.raises(ProviderError, match='address of the service') as e:
    Endpoint(url, 'm')
  assert 'a-secret-of-mine' not in str(e.value)


@pytest.mark.parametrize(
  'settings',
  [
    {'api': 'chats'}, {'model': ''}, {'concurrency': 0}, {'concurrency': 2.0}, {'timeout': 0},
    {'timeout': float('inf')}, {'timeout': '5'}, {'budget': None}, {'retries': None}, {'prices': 3.0},
    {'max_unread': 2}, {'max_unread': '0'}, {'top_logprobs': 0}, {'options': {'n': 3}}, {'options': {'max_tokens': 9}},
    {'options': {'x': {1}}}, {'options': {'x': math.nan}},
    {'options': {'temperature': 1}}, {'limit_field': 'tokens'}, {'prices': None, 'budget': Budget(money=1.0)},
  ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(ProviderError):
    Endpoint(**{'url': 'http://h', 'model': 'm', **settings})


def test_options_are_sent_and_none_leaves_a_field_out():
  options = {'seed': 3, 'temperature': None}
  with Service() as service:
    make_endpoint(service, options=options, limit_field='max_completion_tokens')([ask('a')])
    body = service.arrived[0].body
  assert (body['seed'], body['max_completion_tokens'], body['model']) == (3, 8, 'm')
  assert {'temperature', 'max_tokens'}.isdisjoint(body)
  assert service.arrived[0].path == '/v1/chat/completions'


def test_the_identity_changes_with_all_that_answers_depend_on_and_with_nothing_else():
  base = {'url': 'http://h/v1', 'model': 'm'}
  same = [
    {},
    {'concurrency': 3},
    {'timeout': 5.0},
    {'budget': Budget(tokens=3)},
    {'key_variable': 'K'},
  ]
  other = [
    {'url': 'http://g/v1'}, {'model': 'n'}, {'api': 'completions'}, {'top_logprobs': 5}, {'max_unread': 0.1},
    {'options': {'seed': 1}}, {'limit_field': 'max_completion_tokens'},
  ]  # fmt: skip
  assert len({Endpoint(**base | change).identity for change in same}) == 1
  assert len({Endpoint(**base | change).identity for change in [{}, *other]}) == 1 + len(other)


def test_something_that_is_not_a_request_is_refused_before_anything_is_sent():
  with Service() as service:
    with pytest.raises(ProviderError, match=r'request 1 is .*; expected a Request'):
      make_endpoint(service)([ask('a'), 'b'])
    assert service.asked == []


def test_no_requests_have_no_replies():
  assert Endpoint('http://127.0.0.1:9', 'm')([]) == []


def test_a_text_that_no_encoding_can_write_reaches_the_service():
  with Service() as service:
    (reply,) = make_endpoint(service)([TextRequest((Message('user', '\ud800\nz'),))])
    assert service.arrived[0].body['messages'][0]['content'] == '\ud800\nz'
  assert reply.text == 'I am z'
