"""A language model behind an OpenAI-compatible HTTP service, asked by threads of the standard library.

    budget, prices = Budget(tokens=2_000_000, money=5.0), Prices(input_per_million=0.15, output_per_million=0.60)
    endpoint = Endpoint('https://api.example.org/v1', 'm', key_variable='API_KEY', budget=budget, prices=prices)
    ask = Ledger(Cached(endpoint, 'out/replies.jsonl'))

Requests of a call are sent by `concurrency` threads over connections that stay open; replies keep the order of the
requests, and the listener hears each one in the thread of the caller. `retries` states which failures are repeated, and
`budget` how a request that may exceed the budget is stopped before it is sent. A request that fails for good is a
`Failed`, and the others are answered.

    request                       chat          completions
    TextRequest                   yes           yes
    ChoiceRequest                 yes           yes; the service must return log-probabilities
    TableRequest(behind='own')    yes           yes; a request for each piece
    TableRequest(behind='unknown') no           with `echo` and log-probabilities of the prompt, as vLLM has them
    LossRequest                   no            the same

A kind that the api does not have is an error before anything is sent. Usage counts all attempts that may be billed, so
that the usages of all replies sum to `budget.spent`.

Sharp edges: a text that ends at max_tokens is an answer. A table of a chat model is a part of the user's message. A
service that ignores top_logprobs fails each `ChoiceRequest`, which costs one token each.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float64

from mechjax.errors import ProviderError
from mechjax.providers import bodies, reading
from mechjax.providers.bodies import Json, Wire
from mechjax.providers.budget import Budget, Prices
from mechjax.providers.checks import check_requests
from mechjax.providers.exchange import Bill, Exchange
from mechjax.providers.http import ServiceAddress, Session
from mechjax.providers.keys import check_key_variable, read_key
from mechjax.providers.pool import answer_all
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  Listener,
  LossRequest,
  Reply,
  Request,
  TableRequest,
  TextRequest,
  is_number,
)
from mechjax.providers.retries import Pause, Retries

FORMAT = 1
"""Version of the bodies and of their reading; a part of the identity, so that a cache does not mix versions."""
T = TypeVar('T')


@dataclasses.dataclass(frozen=True, eq=False)
class Endpoint:
  """A service with the API of OpenAI: a `Provider`.

  Attributes:
    url: address to which /chat/completions or /completions is added, such as 'https://api.example.org/v1'.
    model: name of the model.
    key_variable: name of the environment variable with the key, which is read when requests are sent; None for none.
    api: 'chat' or 'completions'.
    concurrency: maximum number of requests in flight in one call.
    timeout: seconds for a connection, and for a complete reply.
    budget: maximum of tokens and money; none by default.
    prices: prices of tokens; without them every cost is 0.
    retries: repetitions and waits.
    top_logprobs: number of likeliest tokens to ask for; services allow 5 to 20.
    max_unread: maximum probability that an answer may have beyond what can be read; see `reading`.
    limit_field: name of the field of the maximum number of tokens; newer models want 'max_completion_tokens'.
    options: further fields of each body, such as {'seed': 0}; None leaves temperature or top_p out.

  Raises:
    ProviderError: settings out of range; a budget in money without prices.
  """

  url: str
  model: str
  key_variable: str | None = None
  api: Literal['chat', 'completions'] = 'chat'
  concurrency: int = 8
  timeout: float = 60.0
  budget: Budget = dataclasses.field(default_factory=Budget)
  prices: Prices | None = None
  retries: Retries = dataclasses.field(default_factory=Retries)
  top_logprobs: int = 20
  max_unread: float = 0.01
  limit_field: Literal['max_tokens', 'max_completion_tokens'] = 'max_tokens'
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  _idle: list[http.client.HTTPConnection] = dataclasses.field(
    default_factory=list, init=False, repr=False
  )
  _pause: Pause = dataclasses.field(default_factory=Pause, init=False, repr=False)

  def __post_init__(self) -> None:
    check_key_variable(self.key_variable)
    _ = self._address, self._wire
    if not isinstance(self.concurrency, int) or not 1 <= self.concurrency <= 1024:
      raise ProviderError(f'concurrency={self.concurrency!r}; expected an integer from 1 to 1024')
    if not (is_number(self.timeout) and self.timeout > 0):
      raise ProviderError(f'timeout={self.timeout!r}; expected finite seconds above 0')
    if not (is_number(self.max_unread) and 0 <= self.max_unread <= 1):
      raise ProviderError(f'max_unread={self.max_unread!r}; expected a probability')
    parts = {'budget': Budget, 'retries': Retries, 'prices': Prices | None}
    for name, kind in parts.items():
      if not isinstance(getattr(self, name), kind):
        raise ProviderError(
          f'{name}={getattr(self, name)!r:.60}; expected {name.title()}(...)',
          hint='leave it out for the default',
        )
    if self.budget.money is not None and self.prices is None:
      raise ProviderError(
        f'a budget of money={self.budget.money} without prices',
        hint='prices=Prices(input_per_million=..., output_per_million=...)',
      )
    try:
      _ = self.identity
    except (TypeError, ValueError) as e:
      raise ProviderError(f'options={self.options!r:.100} are not JSON: {e}') from e

  @property
  def identity(self) -> str:
    """Address, model and all settings that answers depend on, as JSON."""
    names = ('url', 'model', 'api', 'top_logprobs', 'max_unread', 'limit_field')
    fields = {name: getattr(self, name) for name in names} | {'options': dict(self.options)}
    about = {'provider': 'Endpoint', 'format': FORMAT} | fields
    return json.dumps(about, sort_keys=True, allow_nan=False)

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests; see `Provider`.

    Raises:
      ProviderError: a kind of request that the api does not have, or a key that is not set; nothing was sent.
    """
    requests = check_requests(requests)
    for request in requests:
      self._check_kind(request)
    read_key(self.key_variable)
    with Session(self._address, self._idle) as session:
      call = _Call(self, session)
      return answer_all(call.answer, requests, self.concurrency, listener, session.cancel)

  @property
  def _address(self) -> ServiceAddress:
    return ServiceAddress(self.url)

  @property
  def _wire(self) -> Wire:
    return Wire(self.api, self.model, self.top_logprobs, self.limit_field, self.options)

  def _check_kind(self, request: Request) -> None:
    at_once = isinstance(request, TableRequest) and request.behind == 'unknown'
    if self.api == 'chat' and (at_once or isinstance(request, LossRequest)):
      name = "TableRequest(behind='unknown')" if at_once else 'LossRequest'
      instead = "TableRequest(behind='own'), " if at_once else ''
      raise ProviderError(
        f"{name} needs the log-probabilities of a prompt, which api='chat' does not return",
        where=f'the endpoint of model {self.model!r:.100}; nothing was sent',
        hint=f"{instead}api='completions' of a service with echo and logprobs (vLLM), or Local",
      )


class _Call:
  """One call of an endpoint: turns a request into a reply, in the thread that calls `answer`."""

  def __init__(self, endpoint: Endpoint, session: Session) -> None:
    self.api, self.max_unread, self.wire = endpoint.api, endpoint.max_unread, endpoint._wire
    self.exchange = Exchange(
      session,
      api=endpoint.api,
      key_variable=endpoint.key_variable,
      timeout=endpoint.timeout,
      budget=endpoint.budget,
      prices=endpoint.prices,
      retries=endpoint.retries,
      pause=endpoint._pause,
    )

  def answer(self, request: Request, stop: threading.Event) -> Reply:
    bill = Bill()

    def send(body: Json, read: Callable[[Json], T]) -> T:
      return self.exchange.send(body, body[self.wire.limit_field], read, bill, stop)

    try:
      fields = self._fields(request, send)
    except ProviderError as e:
      return Failed(e.what, bill.attempts, bill.usage)
    return Answer(**fields, usage=bill.usage, attempts=bill.attempts)

  def _fields(self, request: Request, send: Callable[..., Any]) -> dict[str, Any]:
    """Fields of the answer to a request; a ProviderError if it fails."""
    if isinstance(request, TextRequest):
      read_text = lambda choice: reading.read_text(choice, self.api)  # noqa: E731
      return {'text': send(self.wire.body(request), read_text)}
    if isinstance(request, ChoiceRequest):
      row = send(self.wire.body(request), self._reader(request.answers))
      return {'probabilities': row[None]}
    if isinstance(request, LossRequest):
      return {'loss': self._read_loss(request, send)}
    read = self._one_at_a_time if request.behind == 'own' else self._all_at_once
    return {'probabilities': read(request, send)}

  def _reader(self, answers: Sequence[str]) -> Callable[[Json], Float64[np.ndarray, ' answers']]:
    return lambda choice: reading.read_answers(
      reading.read_first(choice, self.api), answers, self.max_unread
    )

  def _one_at_a_time(
    self, request: TableRequest, send: Callable[..., Any]
  ) -> Float64[np.ndarray, 'places answers']:
    written: list[str] = []
    rows = []
    for _ in request.pieces:
      rows.append(send(self.wire.table_body(request, written), self._reader(request.answers)))
      written.append(request.answers[int(np.argmax(rows[-1]))])
    return np.stack(rows)

  def _all_at_once(
    self, request: TableRequest, send: Callable[..., Any]
  ) -> Float64[np.ndarray, 'places answers']:
    body, prompt, start = self.wire.echo_body(request)
    places = [start + place for place in bodies.find_unknown(request.pieces)]

    def read(choice: Json) -> Float64[np.ndarray, 'places answers']:
      found = reading.read_places(reading.read_echo(choice, prompt), places)
      return np.stack(
        [reading.read_answers(one, request.answers, self.max_unread) for one in found]
      )

    return send(body, read)

  def _read_loss(self, request: LossRequest, send: Callable[..., Any]) -> float:
    body, prompt, start = self.wire.echo_body(request)
    return send(body, lambda choice: reading.read_loss(reading.read_echo(choice, prompt), start))
