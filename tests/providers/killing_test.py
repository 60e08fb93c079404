"""A run that is killed with SIGKILL in the middle resumes, and nothing that it kept is asked for twice."""

import collections
import json
import subprocess
import sys
import time

import pytest

from mechjax.providers import Cached, Endpoint
from mechjax.providers import cache as cache_room
from tests.providers.serving import Service, ask, hang

PROGRAM = """
import sys
from mechjax.providers import Cached, Endpoint
from tests.providers.serving import ask
url, path = sys.argv[1:]
Cached(Endpoint(url, 'm', concurrency=4), path)([ask(str(n)) for n in range(30)])
"""
NAMES = [str(n) for n in range(30)]


def run_until_killed(service, path):
  """Runs the program until all its threads wait for a reply and the others are kept, and kills it."""
  program = subprocess.Popen([sys.executable, '-c', PROGRAM, service.url, str(path)])
  try:
    before, deadline = len(service.asked), time.monotonic() + 120
    while not (path.exists() and is_stuck(service, path)):
      assert program.poll() is None, 'the program ended by itself'
      assert time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    program.kill()
    program.wait()
  return service.asked[before:]


def is_stuck(service, path):
  kept = path.read_bytes().count(b'\n') - 1
  return kept > 0 and len(service.asked) == kept + 4 and service.hanging == 4


def count_hanging(service, fault):
  def count(handler):
    with service.lock:
      service.hanging += 1
    fault(handler)

  return count


def test_a_killed_run_resumes_without_asking_twice_for_what_it_kept(tmp_path):
  path = tmp_path / 'replies.jsonl'
  with Service() as service:
    service.hanging = 0
    for name in ('9', '11', '12', '15'):
      service.faults[name] = [count_hanging(service, hang)]
    run_until_killed(service, path)
    ask_all = Cached(endpoint := Endpoint(service.url, 'm', concurrency=4), path)
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    keys = {cache_room.make_key(endpoint.identity, ask(name)): name for name in NAMES}
    kept = [keys[record['key']] for record in records]
    replies = ask_all([ask(name) for name in NAMES])
    counts = collections.Counter(service.asked)
    ask_all([ask(name) for name in NAMES])
    assert collections.Counter(service.asked) == counts, 'the second run asks nothing'
  assert [reply.text for reply in replies] == [f'I am {name}' for name in NAMES]
  assert len(kept) == len({*kept}) >= 8
  assert {name: counts[name] for name in kept} == dict.fromkeys(kept, 1)
  assert {name for name, n in counts.items() if n > 1} == {'9', '11', '12', '15'}
  assert [reply.cached for reply in replies] == [name in kept for name in NAMES]


@pytest.mark.parametrize('cut', [1, 40])
def test_a_run_that_was_killed_while_it_wrote_resumes(tmp_path, cut):
  path = tmp_path / 'replies.jsonl'
  with Service() as service:
    endpoint = Endpoint(service.url, 'm', concurrency=1)
    Cached(endpoint, path)([ask(name) for name in NAMES[:5]])
    path.write_bytes(path.read_bytes()[:-cut])
    replies = Cached(endpoint, path)([ask(name) for name in NAMES])
    counts = collections.Counter(service.asked)
  assert [reply.text for reply in replies] == [f'I am {name}' for name in NAMES]
  assert {name for name, n in counts.items() if n > 1} == {'4'}
