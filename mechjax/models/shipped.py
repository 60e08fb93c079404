"""The shipped patch of a code base, wherever mechjax runs from.

An installed mechjax has its patches as `mechjax.patches`; a checkout that was never installed has
the same files as `patches`. A module that drives a code base asks here and need not know.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def patch(name: str) -> ModuleType:
  """The module `patches/<name>.py`."""
  try:
    return importlib.import_module(f'mechjax.patches.{name}')
  except ModuleNotFoundError as e:
    if e.name != 'mechjax.patches':
      raise
    return importlib.import_module(f'patches.{name}')
