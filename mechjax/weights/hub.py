"""Checkpoints on a hub, by their published names.

`directory_of('organisation/model')` is the directory of a model's safetensors, JSON files and template of
chats, downloaded by `huggingface_hub` if they are not in its cache already. The library is configured as
usual, by its environment variables (another hub, another cache, a token, offline mode); without a
network, the files in the cache are used.

Sharp edge: only these files are downloaded. A model that is published as pickles
only gives a directory without a checkpoint, and an error that says so.
"""

from __future__ import annotations

import re
from pathlib import Path

from mechjax import errors, extras, files

_FILES = ('*.safetensors', '*.json', '*.jinja')
_NAME = re.compile(r'[\w.-]+/[\w.-]+')


def is_name(text: str) -> bool:
  """Whether a text has the form 'organisation/model', and is not an existing path.

  Args:
    text: the text that a user gave.

  Returns:
    True if a hub may have it.
  """
  return bool(_NAME.fullmatch(text)) and not files.exists(Path(text))


def directory_of(name: str, revision: str | None = None) -> Path:
  """The directory that holds a published model.

  Args:
    name: 'organisation/model'.
    revision: branch, tag or commit; None for the main branch.

  Returns:
    A directory in the cache of `huggingface_hub`.

  Raises:
    FetchError: it is not in the cache, and cannot be downloaded: the hub is not reachable, does not
      have it, or does not give this user access.
    MissingExtraError: `huggingface_hub` is not installed.
  """
  library = extras.require('huggingface_hub', 'models')
  if not _NAME.fullmatch(name):
    raise errors.FetchError(
      f'{name!r} is neither a directory nor the name of a published model',
      hint="names are of the form 'organisation/model'",
    )
  try:
    found = library.snapshot_download(name, revision=revision, allow_patterns=list(_FILES))
  except Exception as e:  # It raises errors of three HTTP libraries, its own errors, and OSError.
    raise errors.FetchError(
      f'{name!r} ({revision or "main branch"}) is not in the cache and cannot be downloaded: '
      f'{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ""}',
      cause='no such model, no access to it, or no network',
      hint='check the name; log in with `hf auth login` if the model asks for it; without a '
      "network, copy the model's directory here and give its path",
    ) from e
  return Path(found)
