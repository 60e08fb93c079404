"""Packages whose modules load on first use.

    __getattr__, __dir__ = lazy.package(__name__)

After `import mechjax` alone, `mechjax.viz.patching` and `mechjax.sae.store` exist, and nothing is imported for them
until they are used. Python calls `__getattr__` of a package for an attribute that it does not have (PEP 562).

A package writes this line under `if not TYPE_CHECKING`: with a `__getattr__` a type checker assumes that every name
exists, and would no longer report a misspelt one.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any


def package(
  name: str, elsewhere: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """The `__getattr__` and the `__dir__` of a package.

  Args:
    name: name of the package, `__name__`.
    elsewhere: names that other modules define, each with its module.

  Returns:
    Two functions: the first returns a submodule or one of these names, and raises AttributeError for any other name;
    the second lists all names.
  """
  homes = dict(elsewhere or {})

  def get(attribute: str) -> Any:
    if attribute in homes:
      return getattr(importlib.import_module(homes[attribute]), attribute)
    module = f'{name}.{attribute}'
    if not attribute.startswith('_') and importlib.util.find_spec(module):
      return importlib.import_module(module)
    raise AttributeError(f'module {name!r} has no attribute {attribute!r}')

  def list_names() -> list[str]:
    itself = sys.modules[name]
    modules = (found.name for found in pkgutil.iter_modules(itself.__path__))
    return sorted({*vars(itself), *homes, *(m for m in modules if not m.startswith('_'))})

  return get, list_names
