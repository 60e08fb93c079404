"""Output directories of experiments, each of which belongs to one choice of settings.

An experiment that was interrupted continues with what its directory has, and results of other settings must not be
among it. So the settings are written first, and a later run with others is refused.

    out = claim('out/ito', settings, SAEError)
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

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
    MechjaxError: of the class `error`, if the directory holds results of other settings.
  """
  out = Path(place)
  out.mkdir(parents=True, exist_ok=True)
  kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in (*free, 'out')}
  mine = json.loads(json.dumps(kept | more))
  path = out / SETTINGS
  if path.exists() and (there := json.loads(path.read_text())) != mine:
    differing = sorted(k for k in mine | there if mine.get(k) != there.get(k))
    raise error(
      f'{out} holds results of other settings: {", ".join(differing)}',
      hint='give another --out, or remove that directory',
    )
  files.write_json(path, mine)
  return out
