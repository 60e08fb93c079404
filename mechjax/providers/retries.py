"""Attempts that failed: which ones are repeated, when, and whether they count as paid.

    status 429, 408, 5xx                      repeated, not paid
    status 3xx and other 4xx                  final, not paid; the reason shows the body
    connection refused, unknown host          repeated, not paid: nothing was sent
    connection broken, cut body, timeout      repeated, paid: the service may have computed the answer
    body that is not JSON or has no choices   repeated, paid
    answer that cannot be read exactly        final, paid

"Paid" attempts count in the budget: with the usage that the service states, otherwise with their upper bound.

A service that asks to wait (Retry-After, in seconds or as a date) is obeyed: all requests of the endpoint pause, and a
wait that is longer than `Retries.max_wait` ends the request instead of being shortened. Other waits double from attempt
to attempt, times a factor between 0.5 and 1 that is a hash of the request, so that sixteen threads do not return at the
same moment and a rerun waits the same time.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import hashlib
import math
import threading
import time
from collections.abc import Mapping

from mechjax.errors import ProviderError
from mechjax.providers.requests import is_number


@dataclasses.dataclass(frozen=True)
class FailedAttempt:
  """An attempt without an answer.

  Attributes:
    reason: the error, in one line.
    again: whether another attempt may succeed.
    paid: whether the service may bill it.
    retry_after: seconds that the service asks to wait; None if it does not ask.
  """

  reason: str
  again: bool
  paid: bool
  retry_after: float | None = None


@dataclasses.dataclass(frozen=True)
class Retries:
  """Number of repetitions and the waits between them.

  Attributes:
    count: maximum number of repetitions after the first attempt.
    backoff: seconds before the first repetition, before jitter; doubles with each one.
    max_wait: longest wait in seconds, also for Retry-After.

  Raises:
    ProviderError: a negative number, or waits that are not finite.
  """

  count: int = 5
  backoff: float = 1.0
  max_wait: float = 120.0

  def __post_init__(self) -> None:
    if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
      raise ProviderError(f'count={self.count!r} of retries; expected an integer of at least 0')
    for name in ('backoff', 'max_wait'):
      if not (is_number(getattr(self, name)) and getattr(self, name) >= 0):
        raise ProviderError(
          f'{name}={getattr(self, name)!r}; expected finite seconds of at least 0'
        )

  def wait_before(self, attempt: int, sent: bytes) -> float:
    """Seconds before a repetition without Retry-After.

    Args:
      attempt: number of the attempt that failed, from 1.
      sent: body of the request, whose hash is the source of the jitter.
    """
    digest = hashlib.sha256(b'%d\n' % attempt + sent).digest()
    jitter = 0.5 + int.from_bytes(digest[:8], 'big') / 2**65
    doublings = min(attempt - 1, 60)
    return min(self.max_wait, self.backoff * 2**doublings) * jitter


class Pause:
  """The moment before which an endpoint sends nothing, because its service asked to wait."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._until = -math.inf

  def extend(self, seconds: float) -> None:
    """Sends nothing for so many seconds from now."""
    with self._lock:
      self._until = max(self._until, time.monotonic() + seconds)

  def left(self) -> float:
    """Seconds that are left; 0 if none."""
    with self._lock:
      return max(0.0, self._until - time.monotonic())


def read_retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds that a service asks to wait; None if it does not ask, or in a form that is not known.

  Args:
    headers: of the reply, keys in lower case. A date is compared with the service's own clock if `date` is given.
  """
  value = headers.get('retry-after', '').strip()
  if value.isascii() and value.replace('.', '', 1).isdigit():
    return float(value)
  until = _read_date(value)
  if until is None:
    return None
  now = _read_date(headers.get('date', '')) or datetime.datetime.now(datetime.UTC)
  return max(0.0, (until - now).total_seconds())


def _read_date(text: str) -> datetime.datetime | None:
  try:
    found = email.utils.parsedate_to_datetime(text)
  except (ValueError, TypeError, IndexError, OverflowError):
    return None
  return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
