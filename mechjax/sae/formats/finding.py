"""Where a dictionary is: a path, or a place on a hub.

A release of dictionaries is one repository with hundreds of them, terabytes in all, so the name of one goes on behind
that of the repository, and nothing else is fetched:

    google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71

As everywhere, `huggingface_hub` does the fetching, with its cache, and is told by its environment variables.

Sharp edge: a path that exists is a path, whatever it looks like.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mechjax import extras
from mechjax.errors import FetchError, WeightsError
from mechjax.files import exists

_NAME = re.compile(r'(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?P<folder>(?:/[\w-][\w.=-]*)*)')


def find(place: str | os.PathLike[str], files: tuple[str, ...]) -> Path:
  """A file or directory on this machine.

  Args:
    place: a path, or 'organisation/repository/folder' of a hub.
    files: which files are wanted from a hub.

  Raises:
    WeightsError: no such path, and not the form of a name.
    FetchError: the hub has no such folder or cannot be reached, and the cache does not hold it.
    MissingExtraError: a hub is asked for and `huggingface_hub` is not installed.
  """
  path = Path(place).expanduser()
  if exists(path):
    return path
  match = _NAME.fullmatch(os.fspath(place))
  if match is None:
    raise WeightsError(
      f'{os.fspath(place)!r} is neither there nor the name of a published dictionary',
      where=f'the working directory is {Path.cwd()}',
      hint="give a directory, or 'organisation/repository/folder'",
    )
  library = extras.require('huggingface_hub', 'models')
  folder = match['folder'].removeprefix('/')
  wanted = [f'{folder}/{file}' if folder else file for file in files]
  try:
    root = library.snapshot_download(match['repository'], allow_patterns=wanted)
  except Exception as e:  # Its errors are those of three HTTP libraries, its own, and OSError.
    raise FetchError(
      f'{os.fspath(place)!r} is no path, and no hub gives it: {type(e).__name__}: {e!s:.200}',
      cause='a wrong path or name, no access, or no network',
      hint="without a network, copy the dictionary's folder here and give its path",
    ) from e
  found = Path(root) / folder
  if not found.is_dir():
    raise FetchError(
      f'{match["repository"]} has no folder {folder!r} with one of {[*files]}',
      hint='look at the files of the repository on its page; the whole folder has to be given',
    )
  return found
