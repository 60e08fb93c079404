"""mechjax: read, change and differentiate anything inside a JAX model that somebody else wrote.

The names below load on first use, so that `import mechjax` is quick and a patch can be declared without
importing a model.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
  'Patcher': 'mechjax.patcher',
  'iterate': 'mechjax.forward',
  'load': 'mechjax.models.load',
  'harvest': None,
  'sites': None,
}

__all__ = sorted(_EXPORTS)
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  if name not in _EXPORTS:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  home = _EXPORTS[name]
  if home is None:
    return importlib.import_module(f'{__name__}.{name}')
  return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_EXPORTS])
