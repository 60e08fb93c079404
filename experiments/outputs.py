"""Output directories of experiments, each of which belongs to one choice of settings.

An experiment that was interrupted continues with what its directory has, and results of other settings must not be
among it. So the settings are written first, and a later run with others is refused. A setting that names files (a
text, a list of names) stands for their contents: a file that was edited is another setting.

    out = claim('out/ito', settings, SAEError)
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import MechjaxError

SETTINGS = 'settings.json'


def claim(
  place: str | os.PathLike[str],
  settings: Any,
  error: type[MechjaxError],
  free: Collection[str] = (),
  **more: str,
) -> Path:
  """Makes an output directory, or finds the one that the same settings made.

  Args:
    place: the directory.
    settings: dataclass of settings.
    error: class of the error.
    free: fields that may differ, because results of several values stand side by side.
    **more: other values on which results depend, such as a fingerprint of the weights.

  Raises:
    MechjaxError: of the class `error`, if the directory holds results of other settings, if its settings cannot be
      read, or if it is a file.
  """
  out = Path(place)
  if out.exists() and not out.is_dir():
    raise error(f'{out} is a file, not a directory', hint='another --out')
  out.mkdir(parents=True, exist_ok=True)
  kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in (*free, 'out')}
  contents = {f'contents of {k}': x for k, v in kept.items() if (x := _digest_files(v))}
  mine = json.loads(json.dumps(kept | more | contents))
  path = out / SETTINGS
  if path.exists() and (there := files.read_json(path, error)) != mine:
    differing = sorted(k for k in mine | there if mine.get(k) != there.get(k))
    raise error(
      f'{out} holds results of other settings: {", ".join(differing)}',
      hint='give another --out, or remove that directory',
    )
  files.write_json(path, mine)
  return out


def _digest_files(value: Any) -> str:
  """Checksum of the files that a setting names, which may be several and may be patterns; empty without files."""
  found = hashlib.sha256()
  names = value.split(',') if isinstance(value, str) else []
  paths = [p for name in names for p in sorted(glob.glob(name.strip())) if os.path.isfile(p)]
  for path in paths:
    with open(path, 'rb') as file:
      found.update(hashlib.file_digest(file, 'sha256').digest())
  return found.hexdigest() if paths else ''


def describe_model(place: str) -> dict[str, str]:
  """Name of a model; of a file, its own name and checksum."""
  path = Path(place)
  if not path.is_file():
    return {'name': place}
  with path.open('rb') as file:
    return {'name': path.name, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def list_versions() -> dict[str, str]:
  """Versions of Python, mechjax and JAX."""
  packages = {name: importlib.metadata.version(name) for name in ('mechjax', 'jax')}
  return {'python': platform.python_version(), **packages}


def make_plain(value: Any) -> Any:
  """A value for JSON: arrays and tuples as lists, NaN as None."""
  if isinstance(value, dict):
    return {k: make_plain(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | list | tuple):
    return [make_plain(v) for v in value]
  if isinstance(value, float | np.floating):
    return float(value) if np.isfinite(value) else None
  return value.item() if isinstance(value, np.generic) else value
