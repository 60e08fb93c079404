"""Budgets in tokens and money that stop a request before it is sent, and prices.

A budget that is compared after the bill arrives is exceeded by everything that was in flight: with sixteen threads, by
sixteen requests. Here each attempt first reserves an upper bound of its tokens, under one lock, and the actual usage
replaces the reservation afterwards. What was sent is therefore never more than the budget:

    budget = Budget(tokens=2_000_000, money=5.0)
    ask = Endpoint(url, model, budget=budget, prices=Prices(input_per_million=0.15, output_per_million=0.60))
    budget.spent                       Usage(tokens_in=..., tokens_out=..., cost=...)

A reservation that does not fit waits while others are in flight, because their actual usage is usually far below their
bound; it is refused once the usage that is known leaves too little. One budget may serve several endpoints.

The bound of a prompt is its length in bytes, since a token of a byte-level or byte-fallback tokenizer has at least one,
plus `PER_MESSAGE` and `PER_REQUEST` tokens for the template of the chat.

Sharp edges: a budget counts in memory, and a new process begins at zero. A service with a hidden prompt that is longer
than `PER_REQUEST`, or with a tokenizer that writes more tokens than bytes, can bill more than the bound; the excess is
counted, and nothing more is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence

from mechjax.errors import ProviderError
from mechjax.providers.requests import Usage, is_number

PER_MESSAGE, PER_REQUEST = 16, 128
"""Tokens of a chat template that an upper bound allows for each message and for each request."""


@dataclasses.dataclass(frozen=True)
class Prices:
  """Prices of tokens, in any one currency.

  Attributes:
    input_per_million: price of a million tokens of prompts.
    output_per_million: price of a million generated tokens.

  Raises:
    ProviderError: a price that is negative or not finite.
  """

  input_per_million: float
  output_per_million: float

  def __post_init__(self) -> None:
    for name, price in dataclasses.asdict(self).items():
      if not is_number(price) or price < 0:
        raise ProviderError(f'{name}={price!r}; expected a finite number of at least 0')

  def cost(self, tokens_in: int, tokens_out: int) -> float:
    """Price of some tokens."""
    return (tokens_in * self.input_per_million + tokens_out * self.output_per_million) / 1e6


class Reservation:
  """Tokens and money that one attempt may use; `settle` replaces them by what it used.

  Attributes:
    bound: the upper bound.
    used: what counts when the attempt ends; the bound unless it is settled.
  """

  def __init__(self, bound: Usage) -> None:
    self.bound = self.used = bound

  def settle(self, used: Usage) -> None:
    """States the actual usage."""
    self.used = used


class Budget:
  """Maximum of tokens and money; shared by threads and, if you like, by endpoints.

  Attributes:
    tokens: maximum number of tokens in and out together; None for any.
    money: maximum cost, in the currency of the prices; None for any.

  Raises:
    ProviderError: a maximum that is negative, not finite, or not a number.
  """

  def __init__(self, tokens: int | None = None, money: float | None = None) -> None:
    if tokens is not None and (
      not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0
    ):
      raise ProviderError(f'tokens={tokens!r} of a budget; expected an integer of at least 0')
    if money is not None and not (is_number(money) and money >= 0):
      raise ProviderError(f'money={money!r} of a budget; expected a finite number of at least 0')
    self.tokens, self.money = tokens, money
    self._changed = threading.Condition()
    self._open: list[Reservation] = []
    self._spent = Usage()

  def __repr__(self) -> str:
    return f'Budget(tokens={self.tokens}, money={self.money}, spent={self.spent})'

  @property
  def spent(self) -> Usage:
    """Usage of all attempts that have ended."""
    with self._changed:
      return self._spent

  @contextlib.contextmanager
  def reserve(
    self, bound: Usage, is_stopped: Callable[[], bool] = lambda: False
  ) -> Iterator[Reservation | str]:
    """Reserves an upper bound while the block runs.

    Args:
      bound: maximum usage of the attempt.
      is_stopped: whether to give up waiting for others; it is looked at ten times a second.

    Yields:
      The reservation, which counts in full unless the block settles it; or, if the bound does not fit, the reason.
    """
    taken = self._take(bound, is_stopped)
    try:
      yield taken
    finally:
      if isinstance(taken, Reservation):
        with self._changed:
          self._open = [other for other in self._open if other is not taken]
          self._spent = add_usages([self._spent, taken.used])
          self._changed.notify_all()

  def _take(self, bound: Usage, is_stopped: Callable[[], bool]) -> Reservation | str:
    with self._changed:
      while True:
        if reason := self._misfit(bound, self._spent):
          return reason
        if not self._misfit(bound, add_usages([self._spent, *(one.bound for one in self._open)])):
          self._open.append(taken := Reservation(bound))
          return taken
        if is_stopped():
          return 'stopped while it waited for its budget'
        self._changed.wait(0.1)

  def _misfit(self, bound: Usage, used: Usage) -> str:
    """Why a bound does not fit next to some usage; '' if it does."""
    need, gone = _tokens(bound), _tokens(used)
    if self.tokens is not None and gone + need > self.tokens:
      return (
        f'not sent: it may use {need:,} tokens, and {max(0, self.tokens - gone):,} of the budget of {self.tokens:,} '
        'are left'
      )
    if self.money is not None and used.cost + bound.cost > self.money:
      return (
        f'not sent: it may cost {bound.cost:.6g}, and {max(0.0, self.money - used.cost):.6g} of the budget of '
        f'{self.money:.6g} are left'
      )
    return ''


def bound_tokens_in(texts: Sequence[str]) -> int:
  """Upper bound of the tokens of a prompt that consists of these messages."""
  n_bytes = sum(len(text.encode('utf-8', 'surrogatepass')) for text in texts)
  return n_bytes + PER_MESSAGE * len(texts) + PER_REQUEST


def add_usages(usages: Sequence[Usage]) -> Usage:
  """Sum of usages."""
  return Usage(
    sum(u.tokens_in for u in usages),
    sum(u.tokens_out for u in usages),
    math.fsum(u.cost for u in usages),
  )


def _tokens(usage: Usage) -> int:
  return usage.tokens_in + usage.tokens_out
