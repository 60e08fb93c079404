"""Compatibility with code written for Oryx.

Oryx's last release cannot be imported on current JAX, but code that contains `from oryx.core.interpreters import
harvest` is still in use. After `install_as_oryx()` such an import gives `mechjax.harvest`, which has the same names,
arguments, modes and results. Where the two differ, mechjax raises an error that Oryx does not (BUILD_NOTES).
"""

from __future__ import annotations

import importlib
import sys
import types

from mechjax.errors import HarvestError

_PATH = ('oryx', 'oryx.core', 'oryx.core.interpreters')


def install_as_oryx() -> None:
  """Makes `oryx.core.interpreters.harvest` importable as `mechjax.harvest`; safe to call again.

  Raises:
    HarvestError: if the real Oryx was imported before.
  """
  real = sys.modules.get(_PATH[0])
  if real is not None and not hasattr(real, '__mechjax__'):
    raise HarvestError(
      'the real oryx is imported already',
      where=str(getattr(real, '__file__', None)),
      hint='call install_as_oryx() before anything imports oryx',
    )
  ours = importlib.import_module('mechjax.harvest')
  parent = None
  for name in _PATH:
    module = sys.modules.get(name) or types.ModuleType(name, __doc__)
    module.__path__ = []  # a package without other importable modules
    module.__mechjax__ = True  # type: ignore[attr-defined]
    sys.modules[name] = module
    if parent is not None:
      setattr(parent, name.rpartition('.')[2], module)
    parent = module
  sys.modules[f'{_PATH[-1]}.harvest'] = ours
  parent.harvest = ours  # type: ignore[union-attr]
