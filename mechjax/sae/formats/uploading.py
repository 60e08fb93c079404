"""Upload of saved dictionaries to a hub, the last and optional step.

    save('out/sae', sae, params, format='sae_lens', licence='apache-2.0')
    upload('out/sae', 'organisation/repository', folder='layer_15')          the address of the commit
    sae, params = load('organisation/repository/layer_15')

`huggingface_hub` does the work, with its own settings: HF_ENDPOINT for another hub, HF_TOKEN or its login for the
token.

Sharp edges: everything in the directory is uploaded, so it must be that of one dictionary or of a set. A repository is
created as a private one; one that exists stays as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mechjax import extras
from mechjax.errors import FetchError, SAEError, WeightsError
from mechjax.sae.formats import card, reading, sets

_REPOSITORY = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_FOLDER = re.compile(r'(?:[\w-][\w.=-]*(?:/[\w-][\w.=-]*)*)?')


def upload(
  directory: str | os.PathLike[str],
  repository: str,
  *,
  folder: str = '',
  private: bool = True,
  message: str | None = None,
  token: str | None = None,
) -> str:
  """Uploads a directory that `save` or `save_set` has written.

  Args:
    directory: the directory of a dictionary or of a set.
    repository: 'organisation/repository'; it is created if it does not exist.
    folder: folder in the repository; empty for its top.
    private: whether a new repository is private.
    message: message of the commit; by default the name of the directory.
    token: token of the hub; by default that of `huggingface_hub`.

  Returns:
    The address of the commit.

  Raises:
    SAEError: the name of the repository or the folder cannot be one; the directory has no card.
    WeightsError: the directory does not exist, or holds no dictionary.
    MissingExtraError: `huggingface_hub` is not installed.
    FetchError: the hub cannot be reached, or refuses the files.
  """
  path = Path(directory)
  _check(path, repository, folder)
  library = extras.require('huggingface_hub', 'models')
  api = library.HfApi(token=token)
  try:
    api.create_repo(repository, private=private, exist_ok=True)
    found: Any = api.upload_folder(
      repo_id=repository,
      folder_path=str(path),
      path_in_repo=folder or None,
      commit_message=message or f'Dictionary {path.name}',
    )
  except Exception as e:  # It raises errors of several HTTP libraries, its own, and OSError.
    raise FetchError(
      f'{path} cannot be uploaded to {repository!r}: {type(e).__name__}: {e!s:.200}',
      cause='no network, no access to the repository, or no login',
      hint='log in with the program of huggingface_hub, or give token=',
    ) from e
  return str(getattr(found, 'commit_url', found))


def _check(path: Path, repository: str, folder: str) -> None:
  if not _REPOSITORY.fullmatch(repository):
    raise SAEError(
      f'{repository!r:.100} is not the name of a repository', hint="'organisation/repository'"
    )
  if not _FOLDER.fullmatch(folder):
    raise SAEError(f'folder={folder!r:.100} is not a folder', hint="'layer_15/width_16k'")
  if not path.is_dir():
    raise WeightsError(
      f'{path} is not a directory', hint='save(directory, sae, params, format=...)'
    )
  if not sets.find_layers(path):
    reading.find_weights(path)  # raises if there is no dictionary
  if not (path / card.NAME).is_file():
    raise SAEError(
      f'{path} has no {card.NAME}',
      cause='a dictionary that was saved by an earlier version, or by another library',
      hint='load it and save it again, with figures= and licence=',
    )
