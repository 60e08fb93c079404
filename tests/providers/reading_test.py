"""Probabilities and losses out of replies, against a small language model whose distributions are known."""

import hashlib
import json
import math
import re

import numpy as np
import pytest

from mechjax.errors import ProviderError
from mechjax.providers import (
  Answer,
  Budget,
  ChoiceRequest,
  Endpoint,
  Failed,
  LossRequest,
  Message,
  TableRequest,
  TextRequest,
  reading,
)
from tests.providers.serving import FAST, Service, ask, status, wrap

DIGITS = tuple('0123456789')
USER = (Message('user', 'Which number?'),)


# --- a model ------------------------------------------------------------------------------------------

VOCABULARY = [*DIGITS, *(f' {d}' for d in DIGITS), 'unknown', '\n', '\t', ' yes', 'no']


def split(text, joins_tabs=False):
  """Tokens of a text: digits one by one, words with the blank before them, other characters alone."""
  pattern = r'\tunknown|\d| ?[a-z]+|[^a-z\d]' if joins_tabs else r'\d| ?[a-z]+|[^a-z\d]'
  return re.findall(pattern, text, re.IGNORECASE)


def distribution(before):
  """Probabilities of the vocabulary after a text, which sum to 0.98."""
  seeds = [hashlib.sha256(f'{before}|{token}'.encode()).digest()[0] / 40 for token in VOCABULARY]
  weights = np.exp(seeds)
  return dict(zip(VOCABULARY, (0.98 * weights / weights.sum()).tolist()))


def probability(before, token):
  return distribution(before).get(token, 1e-4)


def largest(before, n):
  ranked = sorted(distribution(before).items(), key=lambda item: -item[1])[:n]
  return {token: math.log(p) for token, p in ranked}


def serve(joins_tabs=False, special=()):
  """Answers of a service with this model, for both apis."""

  def answer(body):
    n = body.get('top_logprobs') or body.get('logprobs')
    if 'prompt' not in body:
      top = largest(body['messages'][-1]['content'], n)
      items = [{'token': token, 'logprob': value, 'bytes': None} for token, value in top.items()]
      return wrap(
        body, 'x', logprobs={'content': [{'token': 'x', 'logprob': -1.0, 'top_logprobs': items}]}
      )
    if not body.get('echo'):
      top = largest(body['prompt'], n) | {'zzz': -20.0}
      return wrap(
        body, 'zzz', logprobs={'tokens': ['zzz'], 'token_logprobs': [-20.0], 'top_logprobs': [top]}
      )
    tokens, own, listed, before = [*special], [None] * len(special), [None] * len(special), ''
    for token in [*split(body['prompt'], joins_tabs), 'zzz']:
      value = math.log(probability(before, token))
      own.append(value if before else None)
      listed.append(largest(before, n) | {token: value} if before else None)
      tokens.append(token)
      before += token
    return wrap(
      body,
      body['prompt'] + 'zzz',
      logprobs={'tokens': tokens, 'token_logprobs': own, 'top_logprobs': listed},
    )

  return answer


def make_endpoint(service, api='chat', **settings):
  return Endpoint(service.url, 'm', **{'api': api, 'retries': FAST, 'top_logprobs': 25} | settings)


def by_hand(before, answers=DIGITS):
  return [probability(before, a) + distribution(before).get(f' {a}', 0.0) for a in answers]


# --- the whole way ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('api', 'before'), [('chat', 'Which number?'), ('completions', 'Which number?\n\n')]
)
def test_a_choice_has_the_probabilities_of_the_model(api, before):
  with Service(serve()) as service:
    (reply,) = make_endpoint(service, api)([ChoiceRequest(USER, DIGITS)])
    body = service.arrived[0].body
  np.testing.assert_allclose(reply.probabilities, [by_hand(before)], rtol=1e-12)
  assert reply.probabilities.dtype == np.float64
  assert (body['max_tokens'], body['temperature'], body['top_p']) == (1, 1.0, 1.0)
  assert service.arrived[0].path.endswith('/completions')
  assert ('chat' in service.arrived[0].path) == (api == 'chat')


@pytest.mark.parametrize('api', ['chat', 'completions'])
def test_a_table_one_at_a_time_sees_its_own_likeliest_answers(api):
  pieces = ('a', 'b', 'c', 'd')
  budget = Budget()
  with Service(serve()) as service:
    (reply,) = make_endpoint(service, api, budget=budget)(
      [TableRequest(USER, pieces, DIGITS, 'own')]
    )
    seen = [
      b['prompt'] if 'prompt' in (b := one.body) else b['messages'][-1]['content']
      for one in service.arrived
    ]
  text, rows = 'Which number?\n\n', []
  for piece in pieces:
    text += f'{piece}\t'
    assert seen[len(rows)] == text
    rows.append(by_hand(text))
    text += f'{np.argmax(rows[-1])}\n'
  np.testing.assert_allclose(reply.probabilities, rows, rtol=1e-12)
  assert reply.attempts == 4
  assert reply.usage == budget.spent
  assert reply.usage.tokens_in == 40


def test_a_table_that_fails_at_one_piece_has_failed_and_keeps_what_it_cost():
  with Service(serve(), faults={'b': [status(400)]}) as service:
    (reply,) = make_endpoint(service)([TableRequest(USER, ('a', 'b', 'c'), DIGITS, 'own')])
  assert isinstance(reply, Failed)
  assert (reply.attempts, reply.usage.tokens_in) == (2, 10)


@pytest.mark.parametrize('special', [(), ('<s>',), ('<s>', '<x>')])
def test_a_table_all_at_once_has_the_distribution_in_the_place_of_each_word_unknown(special):
  pieces = ('a', 'b b', '"c\\u00e9"', 'ünknown', '😀')
  with Service(serve(special=special)) as service:
    (reply,) = make_endpoint(service, 'completions')([TableRequest(USER, pieces, DIGITS)])
  text, rows = 'Which number?\n\n', []
  for piece in pieces:
    text += f'{piece}\t'
    rows.append(by_hand(text))
    text += 'unknown\n'
  np.testing.assert_allclose(reply.probabilities, rows, rtol=1e-12)
  assert reply.attempts == 1


def test_a_table_is_refused_if_the_tokenizer_joins_the_tab_to_the_word():
  with Service(serve(joins_tabs=True)) as service:
    (reply,) = make_endpoint(service, 'completions')([TableRequest(USER, ('a', 'b'), DIGITS)])
  assert "behind='own'" in reply.reason
  assert reply.usage.tokens_in == 10


@pytest.mark.parametrize('text', ['the war is lost 1940', ' yes', 'é', 'x\ny'])
def test_a_loss_is_the_mean_over_the_tokens_of_the_text_alone(text):
  with Service(serve(special=('<s>',))) as service:
    (reply,) = make_endpoint(service, 'completions')([LossRequest(USER, text)])
  before, losses = 'Which number?\n\n', []
  for token in split(text):
    losses.append(-math.log(probability(before, token)))
    before += token
  assert reply.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_text_that_begins_within_a_token_has_no_loss():
  messages = (*USER, Message('assistant', 'the wa'))
  with Service(serve()) as service:
    (reply,) = make_endpoint(service, 'completions')([LossRequest(messages, 'r is lost')])
  assert 'a token spans' in reply.reason


@pytest.mark.parametrize('value', [None, -math.inf, -9999.0, 'x'])
def test_a_token_without_a_log_probability_leaves_no_loss(value):
  tokens = [reading.EchoToken(0, 'a', -1.0, {}), reading.EchoToken(1, 'b', value, {})]
  assert reading.read_loss(tokens[:1], 0) == 1
  with pytest.raises(ProviderError, match="of token 'b'"):
    reading.read_loss(tokens, 1)


def test_messages_become_one_text_and_the_last_one_of_the_assistant_is_continued():
  messages = (Message('system', 'S'), Message('user', 'U'), Message('assistant', 'A:'))
  with Service() as service:
    make_endpoint(service, 'completions')([TextRequest(messages)])
    make_endpoint(service, 'completions')([TextRequest(messages[:2])])
    make_endpoint(service)([TextRequest(messages)])
    bodies = [one.body for one in service.arrived]
  assert [body['prompt'] for body in bodies[:2]] == ['S\n\nU\n\nA:', 'S\n\nU\n\n']
  assert bodies[2]['messages'][2] == {'role': 'assistant', 'content': 'A:'}


@pytest.mark.parametrize('request_', [TableRequest(USER, ('a',), DIGITS), LossRequest(USER, 'a')])
def test_a_kind_that_a_chat_does_not_have_is_refused_before_anything_is_sent(request_):
  with Service() as service:
    with pytest.raises(ProviderError, match="api='completions'"):
      make_endpoint(service)([ask('a'), request_])
    assert service.asked == []


@pytest.mark.parametrize(
  'logprobs', [None, {}, {'content': []}, {'content': [{'top_logprobs': []}]}, {'top_logprobs': [{}]}, {'tokens': [3]}]
)  # fmt: skip
@pytest.mark.parametrize('api', ['chat', 'completions'])
def test_a_service_without_log_probabilities_fails_at_once_and_is_paid(api, logprobs):
  requests = [ChoiceRequest(USER, DIGITS)]
  if api == 'completions':
    requests += [LossRequest(USER, 'a'), TableRequest(USER, ('a',), DIGITS)]
  with Service(lambda body: wrap(body, 'x', logprobs=logprobs)) as service:
    replies = make_endpoint(service, api)(requests)
  for reply in replies:
    assert 'no log-probabilities' in reply.reason
    assert (reply.attempts, reply.usage.tokens_in) == (1, 10)


def test_a_reply_without_a_text_fails():
  with Service(lambda body: wrap(body, None)) as service:
    (reply,) = make_endpoint(service)([ask('a')])
  assert 'without a text' in reply.reason


# --- lists of tokens ----------------------------------------------------------------------------------


def listing(**tokens):
  return reading.check_distribution([(token, math.log(p)) for token, p in tokens.items()])


def read(listed, *answers, max_unread=0.01):
  return reading.read_answers(listed, answers, max_unread).tolist()


def test_only_tokens_that_equal_the_answer_after_one_blank_are_summed():
  listed = listing(
    **{
      'yes': 0.3,
      ' yes': 0.2,
      '  yes': 0.1,
      'Yes': 0.1,
      'yes,': 0.1,
      'yesterday': 0.1,
      'no': 0.095,
    }
  )
  np.testing.assert_allclose(read(listed, 'yes', 'no'), [0.5, 0.095], rtol=1e-14)


def test_an_answer_that_is_not_listed_is_0_if_little_can_be_missing():
  assert (
    read(listing(a=0.6, b=0.392, c=0.008), 'a', 'z')[1] == 0
  )  # no token that is not listed has more than 0.008
  assert read(listing(a=0.6, b=0.392), 'a', 'z')[1] == 0  # the list leaves 0.008


def test_an_answer_that_is_not_listed_fails_if_more_can_be_missing():
  with pytest.raises(
    ProviderError, match=r"'z' .* not among the 2 likeliest tokens.*0.1 may be missing"
  ):
    read(listing(a=0.6, b=0.1), 'a', 'z')
  assert read(listing(a=0.6, b=0.1), 'a', 'z', max_unread=0.2)[1] == 0


def test_the_token_that_was_sampled_is_not_the_last_of_the_likeliest():
  listed = reading.check_distribution(
    [('a', math.log(0.6)), ('b', math.log(0.1)), ('q', -9.0)], 'q'
  )
  with pytest.raises(ProviderError, match=r'0\.1 may be missing'):
    read(listed, 'a', 'z')
  assert read(listed, 'a', 'q', max_unread=0.2)[1] == pytest.approx(math.exp(-9))


@pytest.mark.parametrize('token', ['1', ' 1', ' '])
def test_an_answer_of_several_tokens_is_refused(token):
  with pytest.raises(ProviderError, match=r"'10' cannot be read from one token.*probability 0\.3"):
    read(listing(**{token: 0.3, '10': 0.6}), '10', 'x')


def test_an_answer_that_is_one_token_is_read_although_rare_tokens_begin_it():
  np.testing.assert_allclose(
    read(listing(**{'10': 0.3, '1': 0.004, '0': 0.69}), '0', '10'), [0.69, 0.3]
  )


def test_probabilities_that_exceed_1_by_rounding_are_scaled_and_others_are_refused():
  assert sum(read(reading.check_distribution([('a', 1e-7), ('b', -15.0)]), 'a', 'b')) <= 1
  with pytest.raises(ProviderError, match='sum to'):
    listing(a=0.6, b=0.6)


@pytest.mark.parametrize('value', [None, 'x', True, math.nan, 0.5, math.inf, [1]])
def test_something_that_is_not_a_log_probability_is_refused(value):
  with pytest.raises(ProviderError, match='log-probability'):
    reading.check_distribution([('a', value)])


@pytest.mark.parametrize('value', [-9999.0, -math.inf, -(10**400), 0, -0.0])
def test_log_probabilities_of_zero_are_accepted(value):
  (token,) = reading.check_distribution([('a', value)]).listed
  assert token == ('a', 1.0 if value == 0 else 0.0)


def test_tokens_that_are_parts_of_a_character_are_aligned_by_their_bytes():
  text = 'aé😀b'.encode()
  assert reading.align_tokens(['a', 'bytes:\\xc3', 'bytes:\\xa9', '😀', 'b'], text) == [
    (0, 0), (1, 1), (2, 2), (3, 3), (4, 7),
  ]  # fmt: skip
  assert reading.align_tokens(['<s>', 'aé', '', '😀', 'b', 'more'], text) == [
    (1, 0),
    (2, 3),
    (3, 3),
    (4, 7),
  ]


@pytest.mark.parametrize(
  'tokens', [[], ['a'], ['a', '\ufffd', '\ufffd', '😀', 'b'], ['a', 'é', '😀', 'bc'], ['x', 3]]
)
def test_tokens_that_are_not_those_of_the_text_are_refused(tokens):
  with pytest.raises(ProviderError, match=r'do not join|is not a text'):
    reading.align_tokens(tokens, 'aé😀b'.encode())


def test_a_reply_is_plain_data_for_json():
  with Service(serve()) as service:
    (reply,) = make_endpoint(service)([ChoiceRequest(USER, ('0', '1'))])
  assert isinstance(reply, Answer)
  assert json.loads(json.dumps(reply.probabilities.tolist())) == reply.probabilities.tolist()
