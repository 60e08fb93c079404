"""Waits between attempts, and the forms of Retry-After."""

import datetime
import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import ProviderError
from mechjax.providers import Retries
from mechjax.providers.retries import read_retry_after


@given(st.integers(1, 2000), st.binary(max_size=20), st.floats(0, 10), st.floats(0, 100))
def test_a_wait_doubles_up_to_its_maximum_and_is_the_same_for_the_same_request(
  attempt, sent, backoff, max_wait
):
  retries = Retries(5, backoff, max_wait)
  wait = retries.wait_before(attempt, sent)
  full = min(max_wait, backoff * 2.0 ** min(attempt - 1, 60))
  assert full / 2 <= wait <= full
  assert wait == retries.wait_before(attempt, sent)


def test_waits_of_different_requests_and_attempts_differ():
  retries = Retries(5, 1.0, 1.0)
  waits = {retries.wait_before(attempt, b'%d' % n) for attempt in (1, 2) for n in range(100)}
  assert len(waits) == 200
  assert min(waits) < 0.55
  assert max(waits) > 0.95


NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def date(seconds):
  return email.utils.format_datetime(NOW + datetime.timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (None, None), ('', None), ('soon', None), ('-3', None), ('nan', None), ('1e3', None), ('٣', None), ('1.2.3', None),
    ('.', None), ('0', 0.0), ('7', 7.0), (' 1.5 ', 1.5), (date(90), 90.0), (date(-90), 0.0), ('9' * 500, float('inf')),
    ('Tue, 01 Jan 2030 00:01:30 -0000', 90.0), ('Tue, 99 Jan 2030 00:01:30 GMT', None),
  ],
)  # fmt: skip
def test_retry_after_is_read_in_seconds_and_as_a_date(value, expected):
  headers = {'date': date(0)} | ({} if value is None else {'retry-after': value})
  assert read_retry_after(headers) == expected


def test_a_date_is_compared_with_the_clock_of_this_machine_if_the_service_gives_none():
  until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1000)
  wait = read_retry_after({'retry-after': email.utils.format_datetime(until, usegmt=True)})
  assert 900 < wait <= 1000


@pytest.mark.parametrize(
  'settings',
  [{'count': -1}, {'count': 1.0}, {'count': True}, {'backoff': -1}, {'max_wait': float('nan')}, {'backoff': '1'}]
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(ProviderError):
    Retries(**settings)
