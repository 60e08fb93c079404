"""One body sent to a service until it is answered: budget, attempt, reading, wait, in this order.

    exchange = Exchange(session, api='chat', key_variable='API_KEY', timeout=60, budget=budget, ...)
    text = exchange.send(body, 256, read_text, bill, stop)

Each attempt reserves its upper bound in the budget before it is sent, and afterwards counts what the service states; an
attempt that may be billed and states nothing counts its bound. `Bill` sums the attempts of one request, so that the
bills of all requests sum to the budget's `spent`.

A service may repeat the header with the key in its error. So every text of a service is searched for the key here,
before it is cut to its first `SHOWN` characters and escaped; a text of a model that contains the key is refused.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from mechjax.errors import ProviderError
from mechjax.providers import reading
from mechjax.providers.bodies import PATHS, Json, prompt_texts
from mechjax.providers.budget import Budget, Prices, Reservation, add_usages, bound_tokens_in
from mechjax.providers.http import HttpReply, Session
from mechjax.providers.keys import hide_key, read_key, shows_key
from mechjax.providers.requests import Usage
from mechjax.providers.retries import FailedAttempt, Pause, Retries, read_retry_after

SHOWN = 300
"""Characters of an error body that a reason shows."""
T = TypeVar('T')


@dataclasses.dataclass
class Bill:
  """Attempts of one request, and their usage.

  Attributes:
    attempts: number of attempts.
    usage: sum of their usages.
  """

  attempts: int = 0
  usage: Usage = dataclasses.field(default_factory=Usage)


@dataclasses.dataclass(frozen=True, eq=False)
class Exchange:
  """Sends bodies in one session.

  Attributes:
    session: connections of the threads.
    api: 'chat' or 'completions'.
    key_variable: environment variable with the key, which is read at each attempt.
    timeout: seconds of a connection, and of a reply.
    budget: maximum of tokens and money.
    prices: prices of tokens; None for 0.
    retries: repetitions and waits.
    pause: the moment before which nothing is sent.
  """

  session: Session
  api: str
  key_variable: str | None
  timeout: float
  budget: Budget
  prices: Prices | None
  retries: Retries
  pause: Pause

  def send(
    self,
    body: Json,
    max_tokens: int,
    read: Callable[[Json], T],
    bill: Bill,
    stop: threading.Event,
  ) -> T:
    """Sends a body until it is answered.

    Args:
      body: body of the request.
      max_tokens: maximum number of tokens that it may generate.
      read: reads the result from a choice; its ProviderError is final.
      bill: receives attempts and usage.
      stop: ends waits and attempts when it is set.

    Returns:
      The result of `read`.

    Raises:
      ProviderError: no answer; `what` is the reason in one line of visible text, without the key.
    """
    data = json.dumps(body).encode()
    bound = self._usage(bound_tokens_in(prompt_texts(body)), max_tokens)
    attempt, reason = 0, ''
    while True:
      _wait(self.pause.left, stop)
      key = read_key(self.key_variable)
      with self.budget.reserve(bound, stop.is_set) as taken:
        if not isinstance(taken, Reservation):
          raise ProviderError(f'{reason}; {taken}' if reason else taken)
        found = self._attempt(data, key, read, taken, bill)
      if not isinstance(found, FailedAttempt):
        return found
      attempt += 1
      asked, reason = found.retry_after or 0.0, f'{found.reason} (attempt {attempt})'
      if asked > self.retries.max_wait:
        longest = f'max_wait={self.retries.max_wait:g}'
        raise ProviderError(f'{reason}; the service asks to wait {asked:g} s, more than {longest}')
      self.pause.extend(asked)
      if not found.again or attempt > self.retries.count:
        raise ProviderError(reason)
      stop.wait(asked + self.retries.wait_before(attempt, data))

  def _attempt(
    self, data: bytes, key: str | None, read: Callable[[Json], T], taken: Reservation, bill: Bill
  ) -> T | FailedAttempt:
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
    headers |= {'Authorization': f'Bearer {key}'} if key else {}
    bill.attempts += 1
    found = self.session.post(PATHS[self.api], data, headers, self.timeout)
    result, usage, paid = (
      (found, None, found.paid)
      if isinstance(found, FailedAttempt)
      else self._read(found, read, key)
    )
    used = usage or (taken.bound if paid else Usage())
    taken.settle(used)
    bill.usage = add_usages([bill.usage, used])
    if isinstance(result, FailedAttempt):
      return dataclasses.replace(result, reason=escape(hide_key(result.reason, key)))
    return result

  def _read(
    self, reply: HttpReply, read: Callable[[Json], T], key: str | None
  ) -> tuple[T | FailedAttempt, Usage | None, bool]:
    """The result, the usage that the service states, and whether it may bill it."""
    if not 200 <= reply.status < 300:
      return read_error(reply, key), None, False
    try:
      body = json.loads(reply.body.decode('utf-8'))
    except (ValueError, RecursionError) as e:
      reason = f'a reply that is not JSON ({type(e).__name__}): '
      shown = hide_key(reply.body.decode('utf-8', 'replace'), key)[:SHOWN]
      return FailedAttempt(reason + shown, again=True, paid=True), None, True
    stated = reading.read_usage(body)
    return self._read_result(body, read, key), self._usage(*stated) if stated else None, True

  def _read_result(
    self, body: Any, read: Callable[[Json], T], key: str | None
  ) -> T | FailedAttempt:
    again = True
    try:
      choice = reading.find_choice(body, self.api)
      again = False
      result = read(choice)
      if not (isinstance(result, str) and shows_key(result, key)):
        return result
      reason = 'a text that contains the key of the service'
    except ProviderError as e:
      shown = shows_key(json.dumps(body), key)  # a part of the key may be in the reason
      reason = (
        'a reply that cannot be read and contains the key of the service' if shown else e.what
      )
    return FailedAttempt(reason, again, paid=True)

  def _usage(self, tokens_in: int, tokens_out: int) -> Usage:
    cost = self.prices.cost(tokens_in, tokens_out) if self.prices else 0.0
    return Usage(tokens_in, tokens_out, cost)


def read_error(reply: HttpReply, key: str | None) -> FailedAttempt:
  """The problem that a reply with an error status states, without the key."""
  try:
    text = json.dumps(json.loads(reply.body.decode('utf-8')))  # letters that were escaped are plain
  except (ValueError, RecursionError):
    text = reply.body.decode('utf-8', 'replace')
  reason = f'status {reply.status}: {hide_key(text, key)[:SHOWN]}'
  if 300 <= reply.status < 400:
    target = hide_key(reply.headers.get('location', ''), key)[:SHOWN]
    reason = f'status {reply.status}, a redirect to {target}, which is not followed'
  again = reply.status in (408, 429) or reply.status >= 500
  return FailedAttempt(reason, again, paid=False, retry_after=read_retry_after(reply.headers))


def escape(text: str) -> str:
  """One line of visible text: control characters, line ends and directional marks are escaped."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def _wait(left: Callable[[], float], stop: threading.Event) -> None:
  """Waits until no seconds are left.

  Raises:
    ProviderError: the call was stopped.
  """
  while (seconds := left()) > 0 and not stop.is_set():
    stop.wait(seconds)
  if stop.is_set():
    raise ProviderError('stopped')
