"""Checkpoints by the name under which a hub publishes them.

`directory_of('organisation/model')` is the directory of a model's safetensors and JSON files,
downloaded by `huggingface_hub` if they are not in its cache already. Everything that library can
be told (another hub, a cache elsewhere, a token, never to use the network) it is told the usual
way, by its environment variables; without a network, what is in the cache is used.

Sharp edge: only safetensors and JSON are asked for. A model that is published as pickles alone
gives a directory without a checkpoint, and the error that says so.
"""

from __future__ import annotations

import re
from pathlib import Path

from mechjax import errors, extras, files

_FILES = ('*.safetensors', '*.json')
_NAME = re.compile(r'[\w.-]+/[\w.-]+')


def is_name(text: str) -> bool:
  """Whether a text is of the form 'organisation/model', and no path that exists.

  Args:
    text: what a user gave.

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
    FetchError: it is not in the cache, and no hub that can be reached has it or gives it to this
      user.
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
  except Exception as e:  # Its errors are those of three HTTP libraries, its own, and OSError.
    raise errors.FetchError(
      f'{name!r} ({revision or "main branch"}) is neither in the cache nor to be had: '
      f'{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ""}',
      cause='no such model, no access to it, or no network',
      hint='compare the name; log in with `hf auth login` if the model asks for it; without a '
      "network, copy the model's directory here and give its path",
    ) from e
  return Path(found)
