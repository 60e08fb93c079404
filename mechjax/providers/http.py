"""One POST of JSON over a kept connection, with a deadline and a maximum size: http.client, and what it leaves open.

    with Session(ServiceAddress('https://api.example.org/v1'), idle=[]) as session:
      found = session.post('/chat/completions', data, headers, timeout=60)

Each thread of a session has a connection of its own, which stays open for the next request, and for the next session
through the list `idle`. The three gaps of http.client that matter here: a body that is shorter than its Content-Length
is an error; the timeout is one for the whole body, not for each packet of it; a body has a maximum size.

Redirects are not followed, because the key would be sent to wherever a reply points; environment variables for proxies
are not read. Sharp edge: http:// sends the key and the prompts unencrypted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping

from mechjax.errors import ProviderError
from mechjax.providers.retries import FailedAttempt

MAX_BODY = 1 << 25
"""Maximum bytes of the body of a reply."""
_CHUNK = 1 << 16
_URL = re.compile(r'[\x21-\x7e]+')


@dataclasses.dataclass(frozen=True)
class ServiceAddress:
  """Address of a service.

  Attributes:
    url: http:// or https://, a host, maybe a port and a path; without user, query and fragment, which could hold a key.

  Raises:
    ProviderError: another address. Only its host is shown.
  """

  url: str

  def __post_init__(self) -> None:
    shown, problem = 'the address of the service', ''
    try:
      parts = urllib.parse.urlsplit(self.url)
      shown = f'the address of the service at {parts.hostname!r:.100}'
      if (
        not _URL.fullmatch(self.url) or parts.scheme not in ('http', 'https') or not parts.hostname
      ):
        problem = 'is not http:// or https:// and a host, in ASCII without blanks'
      elif parts.username or parts.password or parts.query or parts.fragment or '@' in parts.netloc:
        problem = 'has a user, a query or a fragment, which could hold a key'
      elif parts.port == 0:
        problem = 'has port 0'
    except (ValueError, TypeError, AttributeError):
      problem = 'cannot be read'
    if problem:
      raise ProviderError(
        f'{shown} {problem}',
        hint="such as 'https://api.example.org/v1'; key_variable='API_KEY' for a key",
      )

  @property
  def path(self) -> str:
    """Path without a slash at the end."""
    return urllib.parse.urlsplit(self.url).path.rstrip('/')

  def connect(self, timeout: float) -> http.client.HTTPConnection:
    """A connection that is not open yet."""
    parts = urllib.parse.urlsplit(self.url)
    secure = parts.scheme == 'https'
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    assert parts.hostname is not None
    return kind(parts.hostname, parts.port, timeout=timeout)


@dataclasses.dataclass(frozen=True)
class HttpReply:
  """A complete reply.

  Attributes:
    status: number of its status.
    headers: its headers, keys in lower case.
    body: its body.
  """

  status: int
  headers: Mapping[str, str]
  body: bytes


class Session:
  """Connections of one call of an endpoint, one for each thread; a context manager that puts them back on exit.

  Attributes:
    address: address of the service.
    idle: open connections that earlier sessions left; shared with other sessions.
  """

  def __init__(self, address: ServiceAddress, idle: list[http.client.HTTPConnection]) -> None:
    self.address, self.idle = address, idle
    self._own = threading.local()
    self._used: list[http.client.HTTPConnection] = []
    self._sockets: dict[int, socket.socket] = {}
    self._cancelled = False

  def __enter__(self) -> Session:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    if kind is not None:
      self.cancel()
      for one in self._used:
        one.close()
    else:
      self.idle += [one for one in self._used if one.sock is not None]

  def cancel(self) -> None:
    """Ends all connections, also those that threads are waiting for."""
    self._cancelled = True
    for sock in [*self._sockets.values()]:
      with contextlib.suppress(OSError, ValueError):
        sock.shutdown(socket.SHUT_RDWR)

  def post(
    self, path: str, data: bytes, headers: Mapping[str, str], timeout: float
  ) -> HttpReply | FailedAttempt:
    """Sends a body and reads the reply.

    Args:
      path: continues the path of the address.
      data: body of the request.
      headers: its headers.
      timeout: seconds for connecting, and for the complete reply afterwards.
    """
    connection = self._connection(timeout)
    sent = False
    try:
      sock = self._open(connection, timeout)
      sent = True
      connection.request('POST', self.address.path + path, data, dict(headers))
      return _receive(connection, sock, time.monotonic() + timeout)
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as e:
      connection.close()
      unsafe = isinstance(e, ssl.SSLCertVerificationError)
      reason = 'no complete reply' if sent else 'no connection'
      detail = f'timeout after {timeout:g} s' if isinstance(e, TimeoutError) else _describe(e)
      return FailedAttempt(f'{reason}: {detail}', again=not unsafe, paid=sent)

  def _connection(self, timeout: float) -> http.client.HTTPConnection:
    if not hasattr(self._own, 'connection'):
      try:
        self._own.connection = self.idle.pop()
      except IndexError:
        self._own.connection = self.address.connect(timeout)
      self._used.append(self._own.connection)
    return self._own.connection

  def _open(self, connection: http.client.HTTPConnection, timeout: float) -> socket.socket:
    """The open socket of a connection; a new one if the service has closed it in the meantime."""
    if connection.sock is not None and _is_readable(connection.sock):
      connection.close()  # an idle connection with something to read has been closed by the service
    if connection.sock is None:
      connection.timeout = timeout
      connection.connect()
    sock = connection.sock
    sock.settimeout(timeout)
    self._sockets[threading.get_ident()] = sock
    if self._cancelled:
      raise ConnectionAbortedError('cancelled')
    return sock


def _is_readable(sock: socket.socket) -> bool:
  poll = select.poll()  # select.select refuses file numbers above 1,023
  poll.register(sock, select.POLLIN)
  return bool(poll.poll(0))


def _receive(
  connection: http.client.HTTPConnection, sock: socket.socket, deadline: float
) -> HttpReply | FailedAttempt:
  response = connection.getresponse()
  chunks, size = [], 0
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    with contextlib.suppress(OSError):  # closed already if the reply ends its connection
      sock.settimeout(left)
    chunk = response.read1(_CHUNK)
    if not chunk:
      break
    chunks.append(chunk)
    size += len(chunk)
    if size > MAX_BODY:
      connection.close()
      response.close()
      return FailedAttempt(f'a reply of more than {MAX_BODY:,} bytes', again=False, paid=True)
  if response.length:
    raise http.client.IncompleteRead(b'', response.length)
  response.close()
  headers = {name.lower(): value for name, value in response.getheaders()}
  return HttpReply(response.status, headers, b''.join(chunks))


def _describe(error: Exception) -> str:
  if isinstance(error, http.client.IncompleteRead):
    return f'the body was cut, {error.expected} bytes are missing'
  return f'{type(error).__name__}: {error}'
