"""A loopback service with the API of OpenAI that fails in the ways that a test asks for.

    with Service(faults={'a': [status(429, {'Retry-After': '0'}), drop]}) as service:
      Endpoint(service.url, 'm')([ask('a'), ask('b')])
    service.asked             ['a', 'b', 'a', 'a']

A request is named by the end of its last message, or of its prompt; its faults happen one after the other before it is
answered. The service writes down each request that arrives and each usage that it states.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechjax.providers import Message, Retries, TextRequest

FAST = Retries(count=8, backoff=0.001, max_wait=5.0)
"""Retries that do not make a test wait."""


@dataclasses.dataclass(frozen=True)
class Arrived:
  """A request as it arrived: its name, path, headers (keys in lower case), JSON, and the moment in seconds."""

  name: str
  path: str
  headers: Mapping[str, str]
  body: Any
  moment: float


Fault = Callable[['_Handler'], None]


class Service:
  """The service; a context manager.

  Attributes:
    url: address for `Endpoint`.
    arrived: all requests, in order.
    connections: number of connections that were opened.
    release: is set at the end, so that a handler that waits returns.
  """

  def __init__(
    self,
    answer: Callable[[Any], Any] | None = None,
    faults: Mapping[str, Sequence[Fault]] | None = None,
  ) -> None:
    self.answer = answer or answer_text
    self.faults = collections.defaultdict(list, {n: [*f] for n, f in (faults or {}).items()})
    self.arrived: list[Arrived] = []
    self.connections = 0
    self.release = threading.Event()
    self.lock = threading.Lock()
    self._server = _Server(('127.0.0.1', 0), _Handler)
    self._server.service = self
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}/v1'

  @property
  def asked(self) -> list[str]:
    """Names of the requests that arrived, in order."""
    return [one.name for one in self.arrived]

  def __enter__(self) -> Service:
    threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self.release.set()
    self._server.shutdown()
    self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
  request_queue_size = 128
  daemon_threads = True
  block_on_close = False
  service: Service

  def handle_error(self, request: object, client_address: object) -> None:
    """Says nothing about clients that leave."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  server: _Server

  def setup(self) -> None:
    super().setup()
    with self.server.service.lock:
      self.server.service.connections += 1

  def do_POST(self) -> None:
    service = self.server.service
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    name = name_of(body)
    headers = {key.lower(): value for key, value in self.headers.items()}
    with service.lock:
      service.arrived.append(Arrived(name, self.path, headers, body, time.monotonic()))
      faults = service.faults[name]
      fault = faults.pop(0) if faults else None
    if fault is not None:
      fault(self)
    else:
      self.send(200, json.dumps(service.answer(body)).encode())

  do_GET = do_POST

  def send(
    self, status: int, body: bytes, headers: Mapping[str, str] | None = None, missing: int = 0
  ) -> None:
    """Sends a reply in one piece, without its last bytes if some are `missing`."""
    lines = [
      f'HTTP/1.1 {status} x',
      f'Content-Length: {len(body)}',
      'Content-Type: application/json',
    ]
    lines += [f'{name}: {value}' for name, value in (headers or {}).items()]
    whole = '\r\n'.join([*lines, '', '']).encode() + body
    self.wfile.write(whole[: len(whole) - missing])
    if missing:
      self.close_connection = True

  def log_message(self, *_: Any) -> None:
    """Says nothing."""


# --- requests and replies -----------------------------------------------------------------------------


def ask(name: str, max_tokens: int = 8, tag: tuple[str, ...] = ()) -> TextRequest:
  """A request for a text with a name."""
  return TextRequest((Message('user', f'Who is it?\n{name}'),), max_tokens, tag=tag)


def name_of(body: Any) -> str:
  """Name of a request: the last line of what the model reads."""
  text = body['prompt'] if 'prompt' in body else body['messages'][-1]['content']
  return text.rstrip().rpartition('\n')[2]


def answer_text(body: Any) -> Any:
  """A text that repeats the name, 10 tokens in and 2 tokens out."""
  return wrap(body, f'I am {name_of(body)}')


def wrap(
  body: Any, text: str | None, tokens: tuple[int, int] | None = (10, 2), logprobs: Any = None
) -> Any:
  """A reply in the form of the request's api."""
  choice: dict[str, Any] = {'index': 0, 'finish_reason': 'stop', 'logprobs': logprobs}
  choice |= (
    {'text': text} if 'prompt' in body else {'message': {'role': 'assistant', 'content': text}}
  )
  usage = {'usage': {'prompt_tokens': tokens[0], 'completion_tokens': tokens[1]}} if tokens else {}
  return {'id': 'x', 'choices': [choice]} | usage


# --- faults -------------------------------------------------------------------------------------------


def status(number: int, headers: Mapping[str, str] | None = None, body: bytes = b'{}') -> Fault:
  """A reply with a status."""
  return lambda handler: handler.send(number, body, headers)


def raw(body: bytes) -> Fault:
  """A reply with status 200 and a body that is not an answer."""
  return lambda handler: handler.send(200, body)


def cut(handler: _Handler) -> None:
  """A reply whose body ends too soon."""
  handler.send(200, json.dumps(wrap({}, 'cut')).encode(), missing=10)


def drop(handler: _Handler) -> None:
  """No reply: the connection is closed."""
  handler.close_connection = True


def hang(handler: _Handler) -> None:
  """No reply until the service ends."""
  handler.server.service.release.wait(60)
  handler.close_connection = True


def trickle(handler: _Handler) -> None:
  """A body that never ends, a byte at a time."""
  with contextlib.suppress(OSError):
    handler.send(200, b'{"a": "' + b' ' * 100_000, missing=100_000)
    while not handler.server.service.release.wait(0.02):
      handler.wfile.write(b' ')
  handler.close_connection = True
