"""Patching a module while it is imported.

Executing the patched source instead of the original is the most faithful mode: every alias,
subclass, decorator, default and class attribute is made from patched code from the start. It must be
requested before anything imports the module, which a program can do in its first lines and a notebook
often cannot.

One finder stands first in `sys.meta_path` while there are patches waiting. It finds nothing by
itself; it lets the others find the module and wraps their loader in one that executes the patched
code. No bytecode is cached, and the imported module has its own loader, as without a patch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from mechjax.patcher import composing, live, sources
from mechjax.patcher.composing import Patch

_WAITING: dict[str, list[Patch]] = {}


class _Finder:
  """The finder; `sys.meta_path` holds the class itself."""

  @classmethod
  def find_spec(cls, name: str, path: Any = None, target: ModuleType | None = None):
    if name not in _WAITING:
      return None
    for finder in sys.meta_path:
      find = None if finder is cls else getattr(finder, 'find_spec', None)
      spec = find(name, path, target) if find else None
      if spec is not None:
        if spec.loader is not None:
          spec.loader = _Loader(spec.loader)
        return spec
    return None


class _Loader:
  """Another loader, except that it executes patched code."""

  def __init__(self, loader: Any):
    self._loader = loader

  def __getattr__(self, name: str) -> Any:
    return getattr(self._loader, name)

  def create_module(self, spec):
    return self._loader.create_module(spec)

  def exec_module(self, module: ModuleType) -> None:
    spec: Any = module.__spec__
    spec.loader = module.__loader__ = self._loader
    with live.LOCK:
      requests = list(_WAITING.get(module.__name__, []))
      patches = list(dict.fromkeys(requests))
      source = sources.from_spec(spec)
      composite = composing.compose(source, patches)
    names = {name: value for p in patches for name, value in p.names.items()}
    module.__dict__.update(names)
    exec(composite.code, module.__dict__)
    live.collect_names(module, patches, set())
    with live.LOCK:
      live.adopt(module, source, requests, composite)
      forget(module.__name__)


def request(name: str, patch: Patch) -> None:
  """Arranges for a patch to be applied when the module is imported."""
  _WAITING.setdefault(name, []).append(patch)
  if _Finder not in sys.meta_path:
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]


def count_requests(name: str, patch: Patch) -> int:
  """Number of requests for a patch that wait for a module."""
  return _WAITING.get(name, []).count(patch)


def forget(name: str, patch: Patch | None = None) -> None:
  """Withdraws one request for this module, or all of them."""
  if patch is not None:
    _WAITING[name].remove(patch)
  if patch is None or not _WAITING[name]:
    del _WAITING[name]
  if not _WAITING and _Finder in sys.meta_path:
    sys.meta_path.remove(_Finder)  # type: ignore[arg-type]
