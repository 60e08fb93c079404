"""Answers kept on disk: a second run asks nothing, and a run that was killed asks for the rest.

    ask = Cached(Endpoint(...), 'out/replies.jsonl')
    ask(requests)            asks for what is not in the file, each different request once
    ask(requests)            asks nothing; these answers have cached=True, no usage and no attempts

Each answer is appended as soon as it arrives, by one write of one line, so that it survives the end of the process by
any signal. Its key is the SHA-256 of the provider's identity and of the content of the request; failed replies are not
kept. Floats are written as JSON with all their digits, and return bit for bit.

    {"kind": "mechjax replies", "version": 1}
    {"key": "5e0c...", "text": "words about why", "probabilities": null, "loss": null, "usage": [210, 12, 3.9e-05]}

A line that a killed process left incomplete is ignored, and the next append starts on a new line. So an incomplete line
in the middle is nothing unusual, and neither it nor a line that was edited stops a run: a warning names the line, and
its request is asked again. Two processes may use one file at the same time (`flock` orders their appends); each call
first reads what others appended.

Sharp edges: prompts are not in the file, answers are. A write is safe from the end of the process, but not from that of
the machine (no fsync). Requests with a temperature above 0 are kept like others, so they are drawn once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.errors import ProviderError
from mechjax.providers.checks import check_answer, hear_once
from mechjax.providers.requests import (
  Answer,
  Failed,
  Listener,
  Provider,
  Reply,
  Request,
  Usage,
  content,
)

HEADER = json.dumps({'kind': 'mechjax replies', 'version': 1}).encode() + b'\n'
"""First line of the file."""


class Cached:
  """A `Provider` that keeps the answers of another one in a file.

  Attributes:
    ask: the provider.
    path: the file; directories that do not exist are made.

  Raises:
    ProviderError: the file is of another kind.
  """

  def __init__(self, ask: Provider, path: str | os.PathLike[str]) -> None:
    self.ask, self.path = ask, Path(path)
    self._lock = threading.Lock()
    self._kept: dict[str, Answer] = {}
    self._bytes = self._lines = 0  # read so far
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._read()

  @property
  def identity(self) -> str:
    """Identity of the provider."""
    return self.ask.identity

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests, from the file where it has the answer; see `Provider`.

    Raises:
      ProviderError: the provider gives another number of replies than requests, or the file is of another kind.
      OSError: an answer cannot be written.
    """
    requests = list(requests)
    self._read()
    replies: dict[int, Reply] = {}

    def give(numbers: Sequence[int], reply: Reply) -> None:
      for number in numbers:
        replies[number] = reply if number == numbers[0] else _repeat(reply)
        if listener is not None:
          listener(number, replies[number])

    identity, places = self.identity, dict[str, list[int]]()
    for number, request in enumerate(requests):
      places.setdefault(make_key(identity, request), []).append(number)
    missing = {}
    for key, numbers in places.items():
      kept = self._find(key, requests[numbers[0]])
      if kept is None:
        missing[key] = numbers
      else:
        give(numbers, kept)
    self._ask_missing(requests, missing, give)
    return [replies[number] for number in range(len(requests))]

  def _ask_missing(
    self,
    requests: Sequence[Request],
    missing: dict[str, list[int]],
    give: Callable[[Sequence[int], Reply], None],
  ) -> None:
    """Asks each request that is missing once, and keeps each answer as soon as it arrives."""
    keys = [*missing]
    asked = [requests[numbers[0]] for numbers in missing.values()]
    heard = set[int]()

    def hear(n: int, reply: Reply) -> None:
      hear_once(heard, n, len(asked), self.identity)
      give(missing[keys[n]], self._keep(keys[n], asked[n], reply))

    found = self.ask(asked, hear) if asked else []
    if len(found) != len(asked):
      raise ProviderError(
        f'{len(found)} replies to {len(asked)} requests', where=f'provider {identity_of(self.ask)}'
      )
    for n, reply in enumerate(found):
      if n not in heard:  # a provider that does not call its listener
        hear(n, reply)

  def _find(self, key: str, request: Request) -> Answer | None:
    kept = self._kept.get(key)
    try:
      if kept is not None:
        check_answer(request, kept, where=str(self.path))
    except ProviderError as e:
      warnings.warn(f'{e.what} in {self.path}, and is asked again', stacklevel=4)
      return None
    return kept

  def _keep(self, key: str, request: Request, reply: Reply) -> Reply:
    """Appends an answer; gives the reply, or a failed one if the answer does not fit the request."""
    if isinstance(reply, Failed):
      return reply
    try:
      check_answer(request, reply)
    except ProviderError as e:
      return Failed(e.what, reply.attempts, reply.usage)
    with self._lock:
      _append(self.path, _write_line(key, reply))
      self._kept[key] = _mark(reply)
    return reply

  def _read(self) -> None:
    """Reads the complete lines that were appended since the last time."""
    with self._lock, contextlib.suppress(FileNotFoundError):
      damaged = []
      for line in self._new_lines():
        self._lines += 1
        record = None if self._lines == 1 else _read_line(line)
        if record:
          self._kept[record[0]] = record[1]
        elif self._lines > 1 and line:
          damaged.append(self._lines)
      if damaged:
        lines = ', '.join(map(str, damaged[:5])) + (', ...' if len(damaged) > 5 else '')
        warnings.warn(
          f'{self.path} has {len(damaged)} damaged lines, which are asked again: line {lines} '
          '(a process that was killed leaves an incomplete line)',
          stacklevel=4,
        )

  def _new_lines(self) -> list[bytes]:
    with _open_locked(self.path, os.O_RDONLY, fcntl.LOCK_SH) as fd:
      with os.fdopen(os.dup(fd), 'rb') as file:
        _check_header(file.read(len(HEADER)), self.path)
        file.seek(self._bytes)
        lines = file.read().split(b'\n')
    complete = lines[:-1]  # the last one is empty, or was cut
    self._bytes += sum(len(line) + 1 for line in complete)
    return complete


def make_key(identity: str, request: Request) -> str:
  """Key of an answer: SHA-256 of the provider's identity and of the content of the request, in hexadecimal."""
  return hashlib.sha256(json.dumps([identity, content(request)]).encode()).hexdigest()


def identity_of(ask: Provider) -> str:
  """Beginning of an identity, for messages."""
  return repr(ask.identity)[:100]


def _repeat(reply: Reply) -> Reply:
  """The same reply, which was not sent again and costs nothing."""
  if isinstance(reply, Failed):
    return dataclasses.replace(reply, attempts=0, usage=Usage())
  return _mark(reply)


def _mark(answer: Answer) -> Answer:
  return dataclasses.replace(answer, cached=True, attempts=0, usage=Usage())


def _write_line(key: str, answer: Answer) -> bytes:
  record = {
    'key': key,
    'text': answer.text,
    'probabilities': None if answer.probabilities is None else answer.probabilities.tolist(),
    'loss': None if answer.loss is None else float(answer.loss),
    'usage': [answer.usage.tokens_in, answer.usage.tokens_out, answer.usage.cost],
  }
  return json.dumps(record, allow_nan=False).encode() + b'\n'


def _read_line(line: bytes) -> tuple[str, Answer] | None:
  """Key and answer of a line; None for one that is damaged."""
  try:
    record: Any = json.loads(line)
    key, text, loss = record['key'], record['text'], record['loss']
    values = record['probabilities']
    probabilities = None if values is None else np.array(values, np.float64)
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  if not isinstance(key, str) or (probabilities is not None and probabilities.ndim != 2):
    return None
  if probabilities is not None:
    probabilities.flags.writeable = False
  return key, Answer(text, probabilities, loss, cached=True, attempts=0)


def _append(path: Path, line: bytes) -> None:
  """Appends a line in one write, behind a header if the file is new, and on a new line if the last one was cut."""
  with _open_locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as fd:
    found = os.pread(fd, len(HEADER), 0)
    _check_header(found, path)
    before = HEADER[len(found) :]
    if not before and os.pread(fd, 1, os.fstat(fd).st_size - 1) != b'\n':
      before = b'\n'
    if os.write(fd, before + line) != len(before + line):
      raise OSError(
        errno.ENOSPC, 'an answer was not written completely: the disk is full', str(path)
      )


def _check_header(found: bytes, path: Path) -> None:
  if not HEADER.startswith(found):
    raise ProviderError(
      f'{path} does not hold replies: it begins with {found[:60]!r}', hint='give another path'
    )


@contextlib.contextmanager
def _open_locked(path: Path, flags: int, lock: int) -> Iterator[int]:
  fd = os.open(path, flags, 0o666)
  try:
    with contextlib.suppress(OSError):  # file systems without locks
      fcntl.flock(fd, lock)
    yield fd
  finally:
    os.close(fd)
