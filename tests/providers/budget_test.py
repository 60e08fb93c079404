"""A budget is never exceeded by what is sent, with threads, retries and replies of unknown cost."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.errors import ProviderError
from mechjax.providers import Answer, Budget, Endpoint, Failed, Prices, Usage
from mechjax.providers.budget import Reservation, bound_tokens_in
from tests.providers.serving import FAST, Service, ask, cut, drop, raw, status, wrap

PRICES = Prices(input_per_million=1e6, output_per_million=2e6)
USED = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60), st.integers(0, 60))
"""Usage of an attempt, and what its bound has more."""


@given(
  st.lists(USED, min_size=1, max_size=40), st.integers(0, 400), st.booleans(), st.integers(2, 16)
)
@settings(max_examples=60)
def test_what_is_sent_never_exceeds_the_budget_and_what_is_refused_would(
  attempts, limit, money, n_threads
):
  budget = Budget(money=limit / 2) if money else Budget(tokens=limit)
  size = (lambda u: u.cost * 2) if money else (lambda u: u.tokens_in + u.tokens_out)
  waiting, lock = iter(attempts), threading.Lock()
  open_bounds, peaks, refused, used = [], [], [], []

  def work():
    while True:
      with lock:
        one = next(waiting, None)
      if one is None:
        return
      actual = Usage(one[0], one[1], (one[0] + one[1]) / 2)
      bound = Usage(one[0] + one[2], one[1] + one[3], sum(one) / 2)
      with budget.reserve(bound) as taken:
        if not isinstance(taken, Reservation):
          refused.append(bound)
          continue
        with lock:
          open_bounds.append(size(bound))
          peaks.append(sum(open_bounds) + sum(map(size, used)))
        time.sleep(0)
        with lock:
          open_bounds.remove(size(bound))
          used.append(actual)
        taken.settle(actual)

  threads = [threading.Thread(target=work) for _ in range(n_threads)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert max(peaks, default=0) <= limit
  assert size(budget.spent) == sum(map(size, used)) <= limit
  assert len(used) + len(refused) == len(attempts)
  assert all(size(budget.spent) + size(bound) > limit for bound in refused)


@pytest.mark.parametrize('settings_', [{'tokens': 6000}, {'money': 6500.0}])
def test_an_endpoint_with_sixteen_threads_and_faults_never_sends_more_than_its_budget(settings_):
  faults = [drop, cut, raw(b'{'), status(500), status(429, {'Retry-After': '0'}), raw(b'{}')]
  names = [f'{n:02}' for n in range(60)]
  budget = Budget(**settings_)
  with Service(faults={name: [faults[n % 6]] for n, name in enumerate(names)}) as service:
    endpoint = Endpoint(
      service.url, 'm', concurrency=16, budget=budget, prices=PRICES, retries=FAST
    )
    replies = endpoint([ask(name) for name in names])
    asked = service.asked
  (bound,) = {bound_tokens_in([f'Who is it?\n{name}']) + 8 for name in names}
  unknown = {name for n, name in enumerate(names) if n % 6 in (0, 1, 2, 5)}
  billed = 0
  for n, name in enumerate(asked):
    first = name not in asked[:n]
    billed += bound if first and name in unknown else 12 if not first else 0
  spent = budget.spent.tokens_in + budget.spent.tokens_out
  assert billed == spent <= settings_.get('tokens', spent)
  assert budget.spent.cost <= settings_.get('money', budget.spent.cost)
  assert budget.spent == add([reply.usage for reply in replies])
  failed = [reply for reply in replies if isinstance(reply, Failed)]
  assert 0 < len(failed) < len(replies)
  assert all(
    'not sent: it may' in reply.reason and 'of the budget of' in reply.reason for reply in failed
  )


def add(usages):
  return Usage(*(sum(getattr(u, n) for u in usages) for n in ('tokens_in', 'tokens_out', 'cost')))


def test_a_request_that_does_not_fit_is_not_sent_and_the_others_are_kept():
  bound = bound_tokens_in(['Who is it?\na']) + 8
  with Service() as service:
    endpoint = Endpoint(service.url, 'm', budget=Budget(tokens=bound + 20), concurrency=1)
    replies = endpoint([ask('a'), ask('b', max_tokens=10**9), ask('c'), ask('d'), ask('e')])
    assert service.asked == ['a', 'c']
  assert [isinstance(reply, Answer) for reply in replies] == [True, False, True, False, False]
  assert replies[1] == Failed(replies[1].reason, attempts=0)
  assert f'{10**9 + bound - 8:,} tokens' in replies[1].reason
  assert f'{bound + 8} of the budget of {bound + 20}' in replies[1].reason


def test_a_request_waits_for_those_in_flight_that_will_use_less_than_their_bound():
  bound = bound_tokens_in(['Who is it?\na']) + 8
  with Service() as service:
    endpoint = Endpoint(service.url, 'm', budget=Budget(tokens=bound + 5 * 12), concurrency=16)
    replies = endpoint([ask(name) for name in 'abcdef'])
  assert all(isinstance(reply, Answer) for reply in replies)


def test_a_retry_that_no_longer_fits_fails_with_both_reasons():
  bound = bound_tokens_in(['Who is it?\na']) + 8
  with Service(faults={'a': [cut]}) as service:
    endpoint = Endpoint(service.url, 'm', budget=Budget(tokens=bound + 1), retries=FAST)
    (reply,) = endpoint([ask('a')])
    assert service.asked == ['a']
  assert reply.attempts == 1
  assert 'the body was cut' in reply.reason
  assert 'of the budget' in reply.reason
  assert reply.usage.tokens_in + reply.usage.tokens_out == bound


def test_endpoints_share_a_budget():
  budget = Budget(tokens=200)
  with Service() as service:
    first, second = (Endpoint(service.url, model, budget=budget) for model in 'mn')
    assert isinstance(first([ask('a')])[0], Answer)
    assert isinstance(first([ask('b')])[0], Answer)
    assert budget.spent.tokens_in == 20
    budget.tokens = 150
    assert isinstance(second([ask('a')])[0], Failed)


def test_a_usage_above_the_bound_is_counted_and_nothing_more_is_sent():
  with Service(lambda body: wrap(body, 'x', tokens=(5000, 2))) as service:
    endpoint = Endpoint(service.url, 'm', budget=Budget(tokens=1000), concurrency=1)
    replies = endpoint([ask('a'), ask('b')])
    assert service.asked == ['a']
  assert replies[0].usage.tokens_in == 5000
  assert isinstance(replies[1], Failed)


def test_an_attempt_that_raises_counts_its_bound():
  budget = Budget(tokens=100)
  with pytest.raises(KeyError), budget.reserve(Usage(30, 5, 1.0)):
    raise KeyError
  assert budget.spent == Usage(30, 5, 1.0)
  assert 'spent=Usage(tokens_in=30' in repr(budget)


def test_a_wait_for_the_budget_ends_when_the_call_stops():
  budget = Budget(tokens=10)
  with budget.reserve(Usage(6, 0, 0.0)), budget.reserve(Usage(6, 0, 0.0), lambda: True) as taken:
    assert taken == 'stopped while it waited for its budget'


@pytest.mark.parametrize(
  'arguments', [{'tokens': -1}, {'tokens': 1.5}, {'tokens': True}, {'money': -1}, {'money': float('nan')}]
)  # fmt: skip
def test_maxima_that_are_not_amounts_are_refused(arguments):
  with pytest.raises(ProviderError, match='of a budget'):
    Budget(**arguments)


@pytest.mark.parametrize('price', [-1, float('inf'), float('nan'), '1', True])
def test_prices_that_are_not_amounts_are_refused(price):
  with pytest.raises(ProviderError, match='output_per_million'):
    Prices(1.0, price)


def test_a_cost_is_per_million_tokens():
  assert Prices(0.15, 0.6).cost(2_000_000, 500_000) == pytest.approx(0.6)
