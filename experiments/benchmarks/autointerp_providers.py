"""Part of the benchmark `autointerp`: requests to a service on this machine that waits 100 ms before it answers.

second_run_requests    requests that reach the service in the second of two runs over one cache
concurrency_speedup    seconds of `N` requests one by one, over those of the same requests with 16 in flight

The service runs in a process of its own, so that it shares no interpreter lock with the client. The speedup has 16 as
its upper bound.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.benchmarks import timing
from mechjax.providers import Answer, Cached, Endpoint, Message, Reply, TextRequest

N, IN_FLIGHT, WAIT, ROUNDS = 64, 16, 0.1, 3
TARGETS = {'second_run_requests': '0', 'concurrency_speedup': '>= 12'}


class Waiting(http.server.BaseHTTPRequestHandler):
  """Answers each request after `WAIT` seconds, and a GET with the number of requests so far."""

  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  count = 0

  def do_POST(self) -> None:
    """Waits, and answers."""
    self.rfile.read(int(self.headers['Content-Length']))
    Waiting.count += 1
    time.sleep(WAIT)
    usage = {'prompt_tokens': 10, 'completion_tokens': 1}
    self._send({'choices': [{'message': {'content': 'yes'}}], 'usage': usage})

  def do_GET(self) -> None:
    """States the number of requests."""
    self._send({'count': Waiting.count})

  def _send(self, value: dict) -> None:
    body = json.dumps(value).encode()
    head = (
      f'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'
    )
    self.wfile.write(head.encode() + body)  # one packet

  def log_message(self, *_: object) -> None:
    """Says nothing."""


def serve(port: Connection) -> None:
  """Serves until the process is ended; sends its port first."""
  http.server.ThreadingHTTPServer.request_queue_size = 128
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Waiting)
  port.send(server.server_address[1])
  server.serve_forever()


@contextlib.contextmanager
def run_service() -> Iterator[str]:
  """Address of a service in a process of its own."""
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe(duplex=False)
  process = context.Process(target=serve, args=(there,), daemon=True)
  process.start()
  try:
    yield f'http://127.0.0.1:{here.recv()}'
  finally:
    process.terminate()
    process.join()


def make_requests(n: int) -> list[TextRequest]:
  """Different requests."""
  return [TextRequest((Message('user', f'Is {i} a number?'),), max_tokens=4) for i in range(n)]


def check_answered(replies: list[Reply]) -> None:
  """Raises an AssertionError unless every request was answered at its first attempt."""
  assert all(isinstance(reply, Answer) and reply.attempts <= 1 for reply in replies)


def second_run_requests(url: str) -> int:
  """Requests that reach the service in the second run over one cache."""
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / 'replies.jsonl'
    counts = [read_count(url)]
    for _ in range(2):
      check_answered(Cached(Endpoint(url, 'm', concurrency=IN_FLIGHT), path)(make_requests(N)))
      counts.append(read_count(url))
  assert counts[1] - counts[0] == N
  return counts[2] - counts[1]


def read_count(url: str) -> int:
  """Number of requests that the service has received."""
  host, port = url.removeprefix('http://').split(':')
  connection = http.client.HTTPConnection(host, int(port))
  connection.request('GET', '/')
  return json.loads(connection.getresponse().read())['count']


def concurrency_speedup(url: str) -> float:
  """Seconds one by one over seconds with `IN_FLIGHT` requests in flight."""
  requests = make_requests(N)
  one, many = (Endpoint(url, 'm', concurrency=n) for n in (1, IN_FLIGHT))
  calls = {
    'one by one': lambda: check_answered(one(requests)),
    'in flight': lambda: check_answered(many(requests)),
  }
  return timing.interleave(calls, rounds=ROUNDS, warmup=1).ratio('one by one', 'in flight')


def measure() -> dict[str, float]:
  """All metrics of this file."""
  with run_service() as url:
    return {
      'second_run_requests': second_run_requests(url),
      'concurrency_speedup': concurrency_speedup(url),
    }


if __name__ == '__main__':
  timing.report('autointerp, providers', measure(), TARGETS)
