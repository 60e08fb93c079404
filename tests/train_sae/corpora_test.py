"""Text from Debian packages, fetched once, or an error that says what is missing."""

import pathlib
import shutil
import subprocess

import pytest

from mechjax.errors import FetchError
from mechjax.train_sae import corpora

pytestmark = pytest.mark.slow

FOLDER = 'usr/share/doc/some-package'


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv('MECHJAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def ran(monkeypatch):
  """Commands that were run, of stub tools that leave the files of a package."""
  commands = []

  def run(command, cwd, **_):
    commands.append(command[0])
    pathlib.Path(cwd, 'some-package.deb').touch()
    if command[0] == 'dpkg-deb':
      where = pathlib.Path(cwd, 'files', FOLDER)
      where.mkdir(parents=True)
      (where / 'manual.txt').write_text('read me')
    return subprocess.CompletedProcess(command, 0, '', '')

  monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
  monkeypatch.setattr(subprocess, 'run', run)
  return commands


def test_a_package_is_fetched_once_and_leaves_nothing_but_its_files(ran, cache):
  for _ in range(2):
    assert list(corpora.texts('debian:some-package')) == ['read me']
  assert ran == ['apt-get', 'dpkg-deb']
  assert [p.name for p in (cache / 'debian').iterdir()] == ['some-package']


def test_places_are_separated_by_commas(ran, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  found = list(corpora.texts(f'{tmp_path}/mine.txt, debian:some-package'))
  assert found == ['mine', 'read me']


def test_a_machine_without_the_tools_is_a_clear_error(monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  with pytest.raises(FetchError, match=r"'anarchism'(.|\n)*no apt-get(.|\n)*files of your own"):
    list(corpora.texts('anarchism'))


def test_a_package_that_cannot_be_had_is_a_clear_error_and_leaves_nothing(monkeypatch, cache):
  def run(command, **_):
    return subprocess.CompletedProcess(command, 100, '', 'E: Unable to locate package x')

  monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
  monkeypatch.setattr(subprocess, 'run', run)
  with pytest.raises(FetchError, match='Unable to locate package'):
    list(corpora.texts('debian:x'))
  assert not list((cache / 'debian').iterdir())


@pytest.mark.skipif(shutil.which('apt-get') is None, reason='packages of Debian are for Debian')
def test_a_real_book_is_fetched_and_read_even_where_the_lists_of_packages_are_empty(
  monkeypatch, tmp_path
):
  """7 MB and the lists; an empty configuration of apt stands for the machine's."""
  (tmp_path / 'apt.conf').write_text(f'Dir::State::lists "{tmp_path}/none";')
  (tmp_path / 'none/partial').mkdir(parents=True)
  monkeypatch.setenv('APT_CONFIG', str(tmp_path / 'apt.conf'))
  text = max(corpora.texts('anarchism'), key=len)
  assert len(text) > 100_000
  assert ' the ' in text
