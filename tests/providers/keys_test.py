"""The key of a service is in no text: tested against a service that repeats it in every way."""

import base64
import json
import traceback

import pytest

from mechjax.errors import ProviderError
from mechjax.providers import Cached, ChoiceRequest, Endpoint, Failed, Ledger, Message, Retries
from mechjax.providers import keys as keys_room
from tests.providers.serving import FAST, Service, ask, raw, wrap

KEY = 'sk-s3cr3t/with+signs"and=more'
PARTS = [KEY[i : i + 12] for i in range(len(KEY) - 11)]
"""Every part of the key of twelve characters."""


@pytest.fixture(autouse=True)
def _key(monkeypatch):
  monkeypatch.setenv('A_KEY', KEY)


def make_endpoint(service, **settings):
  return Endpoint(service.url, 'm', 'A_KEY', **{'retries': FAST} | settings)


def check_hidden(text):
  assert not [part for part in PARTS if part in text]


def repeat_header(number, form, before=''):
  """A fault that repeats the header with the key in a form of its own."""
  return lambda handler: handler.send(
    number, (before + form(handler.headers['Authorization'])).encode()
  )


FORMS = [
  str,
  lambda header: json.dumps({'error': {'message': f'Wrong header {header}'}}),
  lambda header: json.dumps({'error': header}).replace('/', '\\/'),
  lambda header: '{"error": "' + ''.join(f'\\u{ord(c):04x}' for c in header) + '"}',
  repr,
  keys_room.html.escape,
  lambda header: keys_room.urllib.parse.quote(header, safe=''),
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('before', ['', ' ' * 280])
@pytest.mark.parametrize('number', [401, 500])
def test_a_service_that_repeats_the_key_in_an_error_does_not_reach_the_reason(form, before, number):
  with Service(faults={'a': [repeat_header(number, form, before)]}) as service:
    (reply,) = make_endpoint(service, retries=Retries(0))([ask('a')])
    assert service.arrived[0].headers['authorization'] == f'Bearer {KEY}'
  assert isinstance(reply, Failed)
  check_hidden(reply.reason)
  assert '[key]' in reply.reason or before


def test_the_key_is_hidden_in_base64():
  shown = base64.b64encode(KEY.encode()).decode()
  assert keys_room.hide_key(f'a {shown} b', KEY) == 'a [key] b'


@pytest.mark.parametrize(
  'fault',
  [
    lambda h: h.send(200, json.dumps(wrap({}, f'It is {KEY}.')).encode()),
    lambda h: h.send(200, f'not JSON: {KEY}'.encode()),
    lambda h: h.send(200, json.dumps({'choices': [], 'x': KEY}).encode()),
    lambda h: h.send(307, b'', {'Location': f'http://127.0.0.1/{KEY}'}),
    lambda h: h.wfile.write(f'HTTP/9 {KEY}\r\n\r\n'.encode()),
  ],
)  # fmt: skip
def test_other_replies_with_the_key_are_not_kept(fault, tmp_path):
  path = tmp_path / 'replies.jsonl'
  with Service(faults={'a': [fault]}) as service:
    ledger = Ledger(Cached(make_endpoint(service, retries=Retries(0)), path))
    (reply,) = ledger([ask('a', tag=('a',))])
  assert isinstance(reply, Failed)
  for text in (
    reply.reason,
    path.read_text() if path.exists() else '',
    ledger.csv(),
    ledger.table(),
  ):
    check_hidden(text)


def test_a_token_with_the_key_is_not_shown_in_part():
  token = 'x' * 20 + KEY
  listed = {'content': [{'top_logprobs': [{'token': token, 'logprob': 'none'}]}]}
  with Service(lambda body: wrap(body, '', logprobs=listed)) as service:
    (reply,) = make_endpoint(service)([ChoiceRequest((Message('user', 'a'),), ('no', 'yes'))])
  check_hidden(reply.reason)


def test_the_key_is_in_no_representation_and_in_no_identity(tmp_path):
  with Service() as service:
    endpoint = make_endpoint(service)
    ask_all = Ledger(Cached(endpoint, tmp_path / 'replies.jsonl'))
    ask_all([ask('a')])
  for text in (repr(endpoint), str(vars(endpoint)), endpoint.identity, ask_all.identity):
    check_hidden(text)
  check_hidden((tmp_path / 'replies.jsonl').read_text())


def test_the_key_is_read_when_a_request_is_sent(monkeypatch):
  with Service() as service:
    endpoint = make_endpoint(service)
    endpoint([ask('a')])
    monkeypatch.setenv('A_KEY', 'another-secret')
    endpoint([ask('b')])
    sent = [one.headers['authorization'] for one in service.arrived]
  assert sent == [f'Bearer {KEY}', 'Bearer another-secret']


def test_no_key_sends_no_header():
  with Service() as service:
    make_endpoint(service, retries=FAST)([ask('a')])
    Endpoint(service.url, 'm')([ask('b')])
    assert 'authorization' not in service.arrived[1].headers


@pytest.mark.parametrize(
  'value', [None, '', 'short', 'a key with blanks', 'a-key\r\nX: y', 'schlüssel-schlüssel']
)
def test_a_value_that_cannot_be_a_key_is_refused_before_anything_is_sent_and_not_shown(
  value, monkeypatch
):
  monkeypatch.delenv('A_KEY') if value is None else monkeypatch.setenv('A_KEY', value)
  with Service() as service:
    with pytest.raises(ProviderError, match='A_KEY') as e:
      make_endpoint(service)([ask('a')])
    assert service.asked == []
  shown = ''.join(traceback.format_exception(e.value))
  assert not value or value not in str(e.value)
  assert (
    not value
    or len(value) < 8
    or value not in shown.partition('The above')[0].replace(__file__, '')
  )


@pytest.mark.parametrize('name', ['sk-1234567890abcdef', 'hf_aBcDeFgHiJkLmNoP', '', 'A KEY', 3])
def test_a_key_in_place_of_the_name_of_a_variable_is_refused_and_not_shown(name):
  with pytest.raises(ProviderError, match='not the name of an environment variable') as e:
    Endpoint('http://h', 'm', name)
  assert len(str(name)) < 8 or str(name) not in str(e.value)


def test_a_key_that_disappears_while_requests_are_sent_fails_the_rest(monkeypatch):
  def remove(handler):
    monkeypatch.delenv('A_KEY')
    handler.send(500, b'')

  with Service(faults={'a': [remove], 'b': [raw(b'{')]}) as service:
    (reply,) = make_endpoint(service)([ask('a')])
    assert service.asked == ['a']
  assert reply.reason == 'the environment variable A_KEY is not set'
  assert reply.attempts == 1
