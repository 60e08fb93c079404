"""Location of a dictionary: a path, or a name on a hub.

A release of dictionaries is one repository with hundreds of them, terabytes in all, so the name of a dictionary is the
name of the repository and its folder there, and nothing else is fetched:

    google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71

As everywhere in mechjax, `huggingface_hub` fetches files, with its cache, and reads its own environment variables.

A `config.json` in the folder above is fetched too: sparsify keeps the settings of a training there.

Sharp edge: a path that exists is read as a path, even if it looks like a name on a hub.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mechjax import extras
from mechjax.errors import FetchError, WeightsError
from mechjax.files import exists

OF_RUN = 'config.json'
"""File in the folder above that of a dictionary: the settings of its training."""

_NAME = re.compile(r'(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?P<folder>(?:/[\w-][\w.=-]*)*)')


def find(place: str | os.PathLike[str], files: tuple[str, ...]) -> Path:
  """Finds a file or directory on this machine, or fetches it.

  Args:
    place: a path, or 'organisation/repository/folder' on a hub.
    files: names of the files to fetch from a hub.

  Raises:
    WeightsError: there is no such path, and it does not have the form of a name on a hub.
    FetchError: the hub has no such folder or cannot be reached, and the cache does not hold it.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  path = Path(place).expanduser()
  if exists(path):
    return path
  match = _NAME.fullmatch(os.fspath(place))
  if match is None:
    raise WeightsError(
      f'{os.fspath(place)!r} is neither an existing path nor the name of a published dictionary',
      where=f'the working directory is {Path.cwd()}',
      hint="give a directory, or 'organisation/repository/folder'",
    )
  library = extras.require('huggingface_hub', 'models')
  folder = match['folder'].removeprefix('/')
  wanted = [f'{folder}/{file}' if folder else file for file in files]
  wanted.append('/'.join([*folder.split('/')[:-1], OF_RUN]))
  try:
    root = library.snapshot_download(match['repository'], allow_patterns=wanted)
  except Exception as e:  # It raises errors of three HTTP libraries, its own, and OSError.
    raise FetchError(
      f'{os.fspath(place)!r} is not a path, and cannot be fetched: {type(e).__name__}: {e!s:.200}',
      cause='a wrong path or name, no access, or no network',
      hint="without a network, copy the dictionary's folder here and give its path",
    ) from e
  found = Path(root) / folder
  if not found.is_dir():
    raise FetchError(
      f'{match["repository"]} has no folder {folder!r} with one of {[*files]}',
      hint='look at the files of the repository on its page, and give the whole path of the folder',
    )
  return found
