"""An upload reaches a hub, here a server of this machine, with every file, and what cannot be one is refused before."""

import base64
import http.server
import json
import sys
import threading

import huggingface_hub
import pytest

from mechjax.errors import FetchError, MissingExtraError, SAEError, WeightsError
from mechjax.sae import upload
from mechjax.sae.formats import load, save
from tests.sae.formats.cases import single
from tests.sae.plain import SAES


class Hub(http.server.BaseHTTPRequestHandler):
  """The requests of a hub that a commit of small files needs."""

  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    self.server.seen.append((self.path, self.headers.get('Authorization'), body))
    if self.server.refuses:
      self.answer({'error': 'no access'}, 403)
    elif self.path == '/api/repos/create':
      self.answer({'url': f'{self.server.address}/organisation/repository'})
    elif '/preupload/' in self.path:
      files = [
        {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
        for f in json.loads(body)['files']
      ]
      self.answer({'files': files})
    elif self.path == '/api/validate-yaml':
      self.answer({'errors': [], 'warnings': []})
    else:
      assert self.path.endswith('/commit/main')
      self.server.commits.append([json.loads(line) for line in body.splitlines()])
      self.answer(
        {'commitUrl': f'{self.server.address}/organisation/repository/commit/1', 'commitOid': '1'}
      )

  def do_GET(self):
    self.answer({'error': 'no access'}, 403)

  def answer(self, words, status=200):
    data = json.dumps(words).encode()
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *_):
    pass


@pytest.fixture
def hub(monkeypatch):
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  server.seen, server.commits, server.refuses = [], [], False
  server.address = f'http://127.0.0.1:{server.server_port}'
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  real = huggingface_hub.HfApi
  monkeypatch.setattr(
    huggingface_hub, 'HfApi', lambda token: real(endpoint=server.address, token=token)
  )
  yield server
  server.shutdown()
  server.server_close()
  thread.join()


@pytest.fixture
def saved(tmp_path):
  sae = SAES['relu']
  save(tmp_path / 'out', sae, single(sae)[0], format='sae_lens', licence='mit')
  return tmp_path / 'out'


def test_every_file_of_a_dictionary_arrives_and_can_be_loaded_again(hub, saved, tmp_path):
  place = upload(saved, 'organisation/repository', folder='layer_15', token='a token')
  assert place.endswith('/commit/1')
  ((head, *files),) = hub.commits
  assert head['value']['summary'] == 'Dictionary out'
  there = tmp_path / 'there'
  there.mkdir()
  for one in files:
    name = one['value']['path'].removeprefix('layer_15/')
    (there / name).write_bytes(base64.b64decode(one['value']['content']))
  assert {p.name: p.read_bytes() for p in there.iterdir()} == {
    p.name: p.read_bytes() for p in saved.iterdir()
  }
  assert load(there).sae == load(saved).sae
  created = json.loads(hub.seen[0][2])
  assert (created['name'], created['organization']) == ('repository', 'organisation')
  assert created.get('visibility') == 'private' or created.get('private') is True
  assert {token for _, token, _ in hub.seen} == {'Bearer a token'}


def test_a_hub_that_refuses_is_an_error_with_its_reason(hub, saved):
  hub.refuses = True
  with pytest.raises(FetchError, match=r"cannot be uploaded to 'organisation/repository'.*403"):
    upload(saved, 'organisation/repository', token='a token')


def test_what_cannot_be_uploaded_is_refused_before_a_hub_is_asked(hub, saved, tmp_path):
  for repository in ('repository', 'a/b/c', 'a b/c', '../x'):
    with pytest.raises(SAEError, match='is not the name of a repository'):
      upload(saved, repository)
  with pytest.raises(SAEError, match=r"folder='../x' is not a folder"):
    upload(saved, 'organisation/repository', folder='../x')
  with pytest.raises(WeightsError, match='is not a directory'):
    upload(tmp_path / 'nowhere', 'organisation/repository')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(WeightsError, match='makes a dictionary'):
    upload(tmp_path / 'empty', 'organisation/repository')
  (saved / 'README.md').unlink()
  with pytest.raises(SAEError, match=r'has no README\.md'):
    upload(saved, 'organisation/repository')
  assert not hub.seen


def test_without_the_library_the_error_names_the_extra(saved, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(MissingExtraError, match="extra 'models'"):
    upload(saved, 'organisation/repository')
