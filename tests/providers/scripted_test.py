"""Scripted functions: contents become answers, mistakes are errors, and failures of a network fail one request."""

import threading

import numpy as np
import pytest

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

USER = (Message('user', 'U'),)
TEXT, CHOICE, LOSS = TextRequest(USER), ChoiceRequest(USER, ('a', 'b')), LossRequest(USER, 't')
TABLE = TableRequest(USER, ('p', 'q', 'r'), ('a', 'b'))


def answer(request, content):
  (reply,) = Scripted(lambda r: content)([request])
  return reply


def test_contents_become_answers_of_the_request():
  assert answer(TEXT, 'words').text == 'words'
  assert answer(LOSS, 2).loss == 2.0
  for content in ([0.25, 0.5], np.array([0.25, 0.5], np.float32), [[0.25, 0.5]]):
    reply = answer(CHOICE, content)
    assert reply.probabilities.dtype == np.float64
    assert reply.probabilities.tolist() == [[0.25, 0.5]]
  assert answer(TABLE, [[1, 0], [0, 1], [0, 0]]).probabilities.tolist() == [[1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize('reply', [Answer('x', usage=Usage(1, 2, 3.0)), Failed('busy')])
def test_complete_replies_are_given_as_they_are(reply):
  assert answer(TEXT, reply) is reply


@pytest.mark.parametrize(
  ('request_', 'content'),
  [
    (TEXT, 3), (TEXT, None), (TEXT, [0.5, 0.5]), (TEXT, Answer(3)), (TEXT, Answer('x', loss=1.0)),
    (TEXT, Answer('x', np.ones((1, 2)) / 2)), (TEXT, Answer('x', usage=Usage(-1))),
    (TEXT, Answer('x', usage=Usage(1, 1, float('nan')))),
    (CHOICE, 'a'), (CHOICE, [0.5]), (CHOICE, [0.5, 0.4, 0.1]), (CHOICE, [0.7, 0.7]), (CHOICE, [-0.1, 0.5]),
    (CHOICE, [np.nan, 0.5]), (CHOICE, [np.inf, 0.5]), (CHOICE, Answer()), (CHOICE, ['x', 'y']),
    (CHOICE, Answer(probabilities=np.array([[0.5, 0.5]], np.float32))), (CHOICE, {'a': 1.0}),
    (TABLE, [0.5, 0.5]), (TABLE, [[0.5, 0.5]]), (TABLE, [[0.5, 0.5], [0.5], [0.5, 0.5]]),
    (LOSS, 'x'), (LOSS, float('nan')), (LOSS, float('inf')), (LOSS, Answer('x')), (LOSS, None),
  ],
)  # fmt: skip
def test_a_content_that_does_not_answer_its_request_is_an_error(request_, content):
  with pytest.raises(ProviderError, match=type(request_).__name__):
    answer(request_, content)


def test_a_failure_of_the_network_fails_its_request_alone():
  def function(request):
    if request is CHOICE:
      raise TimeoutError('no reply')
    if request is LOSS:
      raise ProviderError('refused', hint='another one')
    return 'x'

  replies = Scripted(function)([TEXT, CHOICE, LOSS])
  assert replies[0].text == 'x'
  assert replies[1:] == [Failed('TimeoutError: no reply'), Failed('refused')]


def test_a_mistake_of_the_function_is_raised():
  with pytest.raises(ZeroDivisionError):
    Scripted(lambda r: 1 / 0)([TEXT])


def test_threads_call_the_function_at_the_same_time_and_the_order_is_kept():
  barrier = threading.Barrier(4)

  def function(request):
    barrier.wait(60)
    return request.messages[0].content

  requests = [TextRequest((Message('user', str(n)),)) for n in range(8)]
  replies = Scripted(function, concurrency=4)(requests)
  assert [reply.text for reply in replies] == [str(n) for n in range(8)]


def make_function(word):
  return lambda request: word


def test_a_value_that_the_function_closes_over_and_that_changed_is_not_answered_from_a_cache(
  tmp_path,
):
  values = [0.2]
  ask = Cached(Scripted(lambda request: [values[0], 0.1]), tmp_path / 'replies.jsonl')
  assert ask([CHOICE])[0].probabilities.tolist() == [[0.2, 0.1]]
  values[0] = 0.7
  assert ask([CHOICE])[0].probabilities.tolist() == [[0.7, 0.1]]
  assert ask([CHOICE])[0].cached


@pytest.mark.parametrize(
  'make',
  [
    lambda: ChoiceRequest(USER, ('a', 'a')),
    lambda: TableRequest(USER, ('p',), ('a', 'a')),
    lambda: TableRequest(USER, 'pq', ('a', 'b')),
    lambda: TableRequest(USER, ['p'], ('a', 'b')),
    lambda: TableRequest(USER, (1,), ('a', 'b')),
    lambda: ChoiceRequest(USER, ('a', 'b'), tag=(12, 'x')),
    lambda: LossRequest(USER, 'a', tag='detection'),
  ],
)
def test_answers_that_are_equal_and_fields_that_are_not_tuples_of_texts_are_refused(make):
  with pytest.raises(ProviderError, match=r"'a' begins with answer 'a'|expected a tuple of texts"):
    make()


def test_the_identity_follows_the_code_unless_it_is_given():
  same = {Scripted(make_function('a')).identity for _ in range(2)}
  assert len(same) == 1
  assert Scripted(make_function('b')).identity not in same
  assert Scripted(make_function('a'), identity='mine').identity == 'mine'


@pytest.mark.parametrize('settings', [{'function': 3}, {'concurrency': 0}, {'concurrency': 1.5}])
def test_settings_that_mean_nothing_are_refused(settings):
  with pytest.raises(ProviderError):
    Scripted(**{'function': str, **settings})


def test_something_that_is_not_a_request_is_refused():
  with pytest.raises(ProviderError, match=r'request 0 is .*; expected a Request'):
    Scripted(lambda r: 'x')(['a'])
