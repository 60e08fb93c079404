"""A local hub: files that it has, files that it lacks, and a hub that is offline."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading

import pytest

from mechjax.weights import hub

COMMIT = '0123456789abcdef0123456789abcdef01234567'
OTHER = 'fedcba9876543210fedcba9876543210fedcba98'
FILES = {
  'config.json': b'{"model_type": "gpt2"}',
  'chat_template.jinja': b'{{ messages }}',
  'model.safetensors': b'\x02\0\0\0\0\0\0\0{}',
  'pytorch_model.bin': b'\x80\x04N.',
  'README.md': b'hello',
}
REVISED = FILES | {'config.json': b'{"model_type": "llama"}'}
pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from mechjax import errors
from mechjax.weights import hub
try:
  for revision in sys.argv[2:] or [None]:
    directory = hub.directory_of(sys.argv[1], revision)
    print(sorted(path.name for path in directory.iterdir()))
    print((directory / 'config.json').read_text())
except errors.FetchError as e:
  print('FetchError', e)
"""


class Hub(http.server.BaseHTTPRequestHandler):
  """The three requests of which a download consists."""

  def do_HEAD(self):
    self.answer(with_body=False)

  def do_GET(self):
    self.answer(with_body=True)

  def answer(self, with_body):
    path = self.path.split('?')[0]
    body, name = None, path.rsplit('/', 1)[-1]
    commit, files = (OTHER, REVISED) if '/v1' in path or OTHER in path else (COMMIT, FILES)
    if path.startswith('/api/models/lab/tiny'):
      described = {'id': 'lab/tiny', 'sha': commit, 'siblings': [{'rfilename': f} for f in files]}
      body = json.dumps(described).encode()
      if '/tree/' in path:
        entries = [
          {'type': 'file', 'path': f, 'size': len(c), 'oid': hashlib.sha1(c).hexdigest()}
          for f, c in files.items()
        ]
        body = json.dumps(entries).encode()
    elif path.startswith('/lab/tiny/resolve/'):
      body = files.get(name)
    self.send_response(404 if body is None else 200)
    if body is None:
      self.send_header('X-Error-Code', 'RepoNotFound')
      body = b''
    self.send_header('X-Repo-Commit', commit)
    self.send_header('ETag', f'"{hashlib.sha1(body).hexdigest()}"')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if with_body:
      self.wfile.write(body)

  def log_message(self, *args):
    pass


@pytest.fixture
def asked(tmp_path):
  """Asks for a model in a fresh process, with or without the hub."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_address[1]}'
  environment = {
    'PATH': '',
    'PYTHONPATH': ':'.join(sys.path),
    'HF_HOME': str(tmp_path / 'cache'),
    'HF_ENDPOINT': url,
    'HF_HUB_DISABLE_PROGRESS_BARS': '1',
    'HF_HUB_DISABLE_XET': '1',
    'JAX_PLATFORMS': 'cpu',
  }

  def ask(name, *revisions, **changes):
    command = [sys.executable, '-W', 'ignore', '-c', PROGRAM, name, *revisions]
    env = {**environment, **changes}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout

  yield ask
  server.shutdown()
  server.server_close()


def test_safetensors_and_json_are_fetched_and_then_found_without_a_hub(asked):
  names = "['chat_template.jinja', 'config.json', 'model.safetensors']\n"
  wanted = names + '{"model_type": "gpt2"}\n'
  assert asked('lab/tiny') == wanted
  assert asked('lab/tiny', HF_HUB_OFFLINE='1') == wanted
  unreachable = {'HF_ENDPOINT': 'http://127.0.0.1:9'}
  assert asked('lab/tiny', **unreachable) == wanted
  said = asked('lab/other')
  assert said.startswith(
    "FetchError 'lab/other' (main branch) is not in the cache and cannot be downloaded"
  )
  for said in (asked('lab/other', HF_HUB_OFFLINE='1'), asked('lab/other', **unreachable)):
    assert said.startswith("FetchError 'lab/other' (main branch) is not in the cache and cannot")
    assert 'hint: ' in said


def test_every_revision_is_cached_by_itself(asked):
  found = asked('lab/tiny', 'v1', 'main', 'v1').splitlines()[1::2]
  assert found == [f'{{"model_type": "{family}"}}' for family in ('llama', 'gpt2', 'llama')]


def test_a_text_that_names_no_model_is_not_asked_for(tmp_path):
  from mechjax.errors import FetchError

  with pytest.raises(FetchError, match='neither a directory nor the name of a published model'):
    hub.directory_of('../somewhere/else')
  assert hub.is_name('lab/tiny')
  assert not hub.is_name(str(tmp_path))
  assert not hub.is_name('smollm2-135m')
