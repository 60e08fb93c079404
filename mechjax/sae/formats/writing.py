"""The one file of words that a directory of weights has.

Sharp edge: what `save` is told about a dictionary goes into it, so it has to be JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechjax.sae.errors import SAEError


def write_json(path: Path, words: Mapping[str, Any]) -> None:
  """Writes an object of JSON.

  Args:
    path: of the file.
    words: the object.

  Raises:
    SAEError: it cannot be said in JSON.
  """
  try:
    text = json.dumps(words, indent=2, allow_nan=False)
  except (TypeError, ValueError) as e:
    raise SAEError(
      f'{path.name} cannot be written: {e}', mend='texts, finite numbers, lists and dicts in about='
    ) from e
  path.write_text(text)
