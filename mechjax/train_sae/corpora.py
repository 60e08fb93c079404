"""Text for training and evaluation without a data set of one's own: books and manuals in Debian packages.

    texts = corpora.texts('anarchism')               a long book of prose
    texts = corpora.texts('debian:some-package')     all text of a package
    texts = corpora.texts('my/books/*.txt')          anything that `mechjax.sae.store.texts` reads

A package is fetched once with `apt-get download` and unpacked with `dpkg-deb` into the cache; both come with Debian and
its derivatives, need no root rights, and install nothing. If the machine's package lists are empty or old, as in most
containers, separate lists are fetched. The text is not part of mechjax: its licence is in the `copyright` file of the
package, whose path is shown when it is fetched.

    anarchism           An Anarchist FAQ, GPL-2: 12 MB of English prose
    debian-handbook     The Debian Administrator's Handbook, GPL-2+ or CC-BY-SA-3.0: the English edition
    dict-gcide          The Collaborative International Dictionary of English, GPL-2+: 40 MB, an entry is a text
    python3.11-doc      documentation of Python, PSF licence, as reStructuredText

Sharp edge: a package changes with the release of Debian, and so do the tokens; runs that will be compared should keep
theirs (`pack` writes a digest).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mechjax import errors
from mechjax.sae import store
from mechjax.weights import fetch

DEBIAN = 'debian:'

# Folder of the text in a package, without the other languages of a handbook and without changelogs.
FOLDERS = {
  'anarchism': 'usr/share/doc/anarchism/markdown',
  'debian-handbook': 'usr/share/doc/debian-handbook/html/en-US',
  'dict-gcide': 'usr/share/dictd',
  'python3.11-doc': 'usr/share/doc/python3.11/html/_sources',
}


def texts(places: str, field: str = 'text') -> Iterator[str]:
  """Texts of several places.

  Args:
    places: places separated by commas: a name of `FOLDERS`, 'debian:package', or a place for `store.texts`.
    field: field of the text in files that have fields.

  Raises:
    FetchError: a package cannot be fetched.
    SAEError: there are no texts.
  """
  return store.texts(*(_place(place.strip()) for place in places.split(',')), field=field)


def _place(place: str) -> str | Path:
  if place in FOLDERS:
    return find_package(place) / FOLDERS[place]
  if place.startswith(DEBIAN):
    return find_package(place.removeprefix(DEBIAN)) / 'usr/share'
  return place


def find_package(name: str) -> Path:
  """Directory of an unpacked package, which is fetched if it is not cached."""
  home = fetch.cache_dir() / 'debian' / name
  if home.exists():
    return home
  home.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.partial-', dir=home.parent) as scratch:
    _download(name, scratch)
    (package,) = Path(scratch).glob('*.deb')
    _run(name, ['dpkg-deb', '--extract', str(package), 'files'], scratch)
    (Path(scratch) / 'files').rename(home)
  print(f'fetched {name}; its licence: {home}/usr/share/doc/{name}/copyright', flush=True)
  return home


def _download(name: str, scratch: str) -> None:
  """Downloads a package into a directory; with separate package lists if the machine's do not have it."""
  get = ['apt-get', '--quiet', 'download', name]
  try:
    _run(name, get, scratch)
  except errors.FetchError:
    lists, cache = Path(scratch) / 'lists', Path(scratch) / 'cache'
    for place in (lists / 'partial', cache / 'archives/partial'):
      place.mkdir(parents=True)
    own = [
      '-o',
      f'Dir::State::lists={lists}',
      '-o',
      f'Dir::Cache={cache}',
      '-o',
      'Debug::NoLocking=1',
    ]
    _run(name, ['apt-get', '--quiet', *own, 'update'], scratch)
    _run(name, [*get, *own], scratch)


def _run(name: str, command: list[str], directory: str) -> None:
  if shutil.which(command[0]) is None:
    raise _unavailable(name, f'there is no {command[0]} on this machine')
  done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
  if done.returncode:
    raise _unavailable(name, done.stderr.strip()[-500:])


def _unavailable(name: str, reason: str) -> errors.FetchError:
  return errors.FetchError(
    f'the text of the Debian package {name!r} could not be fetched',
    where=reason,
    cause='no network, no such package in this release, or a machine that is not Debian',
    hint='give files of your own: text, JSONL, Parquet, or a data set on a hub (hf:name:configuration:split)',
  )
