"""Patching a module that is already imported, in place.

By the time a notebook looks inside a model, the module is imported, its classes are subclassed, its
functions aliased, and instances exist. Replacing functions or classes would leave all of those
unpatched. So the objects stay and only their code is exchanged: the patched module is compiled as a
whole (so that future imports, name mangling and class cells are right) and each live function whose
code changed gets the new `__code__`. Everything that refers to that function sees the patch: aliases,
subclasses, bound methods, instances made before, and decorators around it, which are not run again.

The garbage collector lists these functions: all functions of this module that run this code, closures
included, wherever a decorator has hidden them.

Sharp edges:
  - Code that runs only while a module or class is defined is out of reach, except for a few
    statements (see `defining`).
  - A function's new code must close over as many variables as the old (`super()` in a method that
    had none is the usual way to break that).
  - A closure made before the patch whose code now has other parameters, or closes over another
    number of variables, keeps its old code.
  - `importlib.reload` (and %autoreload) restores the unpatched code; the next install starts from the
    present source. Functions that `gc.freeze` has hidden from the collector are not found.
  - `jax.jit` keeps the program that it has traced: a plain call of a function that it has run before runs without the
    patch until `jax.clear_caches()`. Harvests and runs see the patch at once (`code_version`).
"""

from __future__ import annotations
import __future__

import ast
import gc
import inspect
import linecache
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any

from mechjax import code_version
from mechjax.errors import PatchError
from mechjax.patcher import composing, defining, sources
from mechjax.patcher.composing import Composite, Key, Patch
from mechjax.patcher.sources import UpstreamSource

LOCK = threading.RLock()
_MISSING = object()
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_MODULES: dict[str, LiveModule] = {}


class LiveModule:
  """An imported module and the patches on it.

  Attributes:
    module: the module.
    source: its unpatched source.
    counts: the installed patches in order, and the number of installs of each.
  """

  def __init__(
    self, module: ModuleType, source: UpstreamSource, patches: list[Patch], base: Composite
  ):
    self.module, self.source, self.spec = module, source, module.__spec__
    self.counts: Counter[Patch] = Counter(patches)
    self.base = self.current = base
    self._codes: weakref.WeakKeyDictionary[FunctionType, CodeType] = weakref.WeakKeyDictionary()
    self._replaced: dict[str, Any] = {}
    self._executed: list[str] = []
    self._injected: set[str] = set()

  def install(self, patch: Patch, running: Running) -> None:
    """Installs a patch; if it is installed already, only its count increases."""
    self._check_names(composing.compose(self.source, [*dict.fromkeys([*self.counts, patch])]))
    if not self.counts[patch]:
      self._switch_to([*self.counts, patch], running)
    self.counts[patch] += 1

  def uninstall(self, patch: Patch, running: Running) -> None:
    """Decreases the count of a patch and removes the patch when the count is zero."""
    if self.counts[patch] == 1:
      rest = [p for p in self.counts if p != patch]
      try:
        self._switch_to(rest, running)
      except PatchError as error:
        if not rest:
          raise
        raise PatchError(
          f'a patch of {self.module.__name__} cannot be uninstalled before the others',
          cause=f'a patch that was installed later builds on it: {error.what}',
          hint='uninstall the patches in the reverse order of installing them',
        ) from error
      del self.counts[patch]
    else:
      self.counts[patch] -= 1

  def is_current(self) -> bool:
    """Whether the module is still the imported one, was not executed again, and runs the code of this record."""
    if sys.modules.get(self.module.__name__) is not self.module:
      return False
    given = {*composing.functions(self.current.code).values()}
    runs = [function.__code__ in given for function in self._codes]
    return self.module.__spec__ is self.spec and (not self.counts or not runs or any(runs))

  def forget(self) -> None:
    """Removes what is left of the patches after a reload: injected names, and code of older functions."""
    ours = {name: value for patch in self.counts for name, value in patch.names.items()}
    namespace = self.module.__dict__
    for name in self._injected:
      if namespace.get(name, _MISSING) is ours.get(name):
        namespace.pop(name, None)
    given = {*composing.functions(self.current.code).values()}
    for function, code in list(self._codes.items()):
      if function.__code__ in given:
        function.__code__ = code
    show(self.source, None)
    code_version.change()

  def _check_names(self, new: Composite) -> None:
    """Raises if the name of a patched function now refers to a function from elsewhere."""
    old = composing.functions(self.base.code)
    lines = self.source.text.split('\n')
    for key, code in composing.functions(new.code).items():
      name, line, _ = key
      if old.get(key) == code or '<' in name or lines[line - 1].lstrip().startswith('@'):
        continue
      found: Any = self.module
      for part in name.split('.'):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
      if isinstance(found, FunctionType) and not _leads_to(found, self.module.__dict__):
        raise self._not_found(name, line)

  def _switch_to(self, patches: list[Patch], running: Running) -> None:
    """Makes the module run exactly these patches, or raises and changes nothing."""
    new = composing.compose(self.source, patches)
    statements = defining.find_statements(self.source, self.base.tree, new.tree)
    swaps = self._plan_swaps(new, bool(patches), running.find(self.module))
    names = collect_names(self.module, patches, self._injected)
    if self._bind(names, statements, new.code.co_flags & _FUTURE):
      running.forget()
    for function, code in swaps:
      self._codes.setdefault(function, function.__code__)
      function.__code__ = code
    self.current = new
    code_version.change()
    show(self.source, new.display if patches else None)

  def _plan_swaps(
    self, new: Composite, patched: bool, running: list[FunctionType]
  ) -> list[tuple[FunctionType, CodeType]]:
    old_codes, new_codes = composing.functions(self.current.code), composing.functions(new.code)
    changed = {
      key: code
      for key, code in old_codes.items()
      if code.co_flags & inspect.CO_OPTIMIZED and key in new_codes and new_codes[key] != code
    }
    keys = {code: key for key, code in changed.items()}
    swaps, seen = [], set()
    for function in running:
      if (key := keys.get(function.__code__)) is None:
        continue
      seen.add(key)
      code, old = new_codes[key], function.__code__
      closes = len(code.co_freevars) == len(old.co_freevars)
      if closes and _signature(code) == _signature(old):
        swaps.append((function, code if patched else self._codes.get(function, code)))
      elif not closes and '<locals>' not in key[0]:
        raise _other_closure(self.source, function, code)
    self._check_compiled(new, old_codes)
    for name, line, _ in set(changed) - seen:
      if '<locals>' not in name and name.rpartition('.')[2] not in _TRANSIENT:
        raise self._not_found(name, line)
    return swaps

  def _check_compiled(self, new: Composite, codes: dict[Key, CodeType]) -> None:
    """Raises for rules about functions that Python never compiled, such as those below `if False`."""
    compiled = {(code.co_name, code.co_firstlineno) for code in codes.values()}
    lines = {line for applied in new.applied for line in applied.lines}
    for node in ast.walk(self.base.tree):
      if isinstance(node, sources.FUNCTION) and lines & {
        *range(node.lineno, (node.end_lineno or 0) + 1)
      }:
        first = min(part.lineno for part in [node, *node.decorator_list])
        if (node.name, first) not in compiled:
          raise self._not_found(node.name, first)

  def _not_found(self, name: str, line: int) -> PatchError:
    return PatchError(
      f'{self.module.__name__}.{name} is not the code that runs, so it cannot be patched in place',
      where=f'{self.source.filename}:{line}',
      cause='the file changed after it was imported, another tool replaced the function, or its '
      'definition was never executed',
      hint='restart, and call install_on_import() before anything imports the module',
    )

  def _bind(self, names: dict[str, Any], statements: list[ast.stmt], flags: int) -> bool:
    """Restores the module-level names of the last patches, then binds those of the new ones.

    Returns:
      Whether statements were executed, which may have made functions.
    """
    namespace = self.module.__dict__
    for name in self._injected - set(names):
      namespace.pop(name, None)
    namespace.update(names)
    self._injected = set(names)
    dumps = [ast.dump(s) for s in statements]
    if dumps == self._executed:
      return False
    for name, value in self._replaced.items():
      _put(namespace, name, value)
    bound = [name for s in statements for name in defining.binds(s)]
    self._replaced = {name: namespace.get(name, _MISSING) for name in bound}
    self._executed = dumps
    body = ast.Module(statements, [])
    exec(compile(body, self.source.filename, 'exec', flags, dont_inherit=True), namespace)
    return True


_TRANSIENT = ('<genexpr>', '<listcomp>', '<setcomp>', '<dictcomp>')


class Running:
  """All live functions of some modules, as the garbage collector lists them.

  The query takes most of the time of an install, and as long for many modules as for one, so it is
  made once: when the first function is needed, and again after a `forget`.
  """

  def __init__(self, modules: Iterable[ModuleType]):
    self._wanted = {id(module.__dict__) for module in modules}
    self._found: dict[int, list[FunctionType]] = {}

  def find(self, module: ModuleType) -> list[FunctionType]:
    if not self._found:
      self._found = {key: [] for key in self._wanted}
      for thing in gc.get_objects():
        if type(thing) is FunctionType and id(thing.__globals__) in self._wanted:
          self._found[id(thing.__globals__)].append(thing)
    return self._found[id(module.__dict__)]

  def forget(self) -> None:
    self._found = {}


def get_record(module: ModuleType) -> LiveModule:
  """Returns the record of an imported module and its patches, which is made at the first call."""
  record = _current(module.__name__)
  if record is None or record.module is not module:
    source = sources.from_module(module)
    record = LiveModule(module, source, [], composing.compose(source, []))
    _MODULES[module.__name__] = record
  return record


def adopt(
  module: ModuleType, source: UpstreamSource, patches: list[Patch], base: Composite
) -> None:
  """Records that a module was executed with patches in it."""
  record = _MODULES[module.__name__] = LiveModule(module, source, patches, base)
  record._injected = {name for patch in patches for name in patch.names}
  show(source, base.display)


def count_installs(name: str, patch: Patch) -> int:
  """Number of installs of a patch on the imported module `name`."""
  record = _current(name)
  return 0 if record is None else record.counts[patch]


def _current(name: str) -> LiveModule | None:
  """The record of a module; a record from before the module was executed again is dropped."""
  record = _MODULES.get(name)
  if record is not None and not record.is_current():
    del _MODULES[name]
    record.forget()
    return None
  return record


def show(source: UpstreamSource, text: str | None) -> None:
  """Makes debuggers show `text` for a file, or the file itself if None."""
  if text is None:
    linecache.cache.pop(source.filename, None)
    return
  lines = [line + '\n' for line in text.split('\n')[:-1]]
  linecache.cache[source.filename] = (len(text), None, lines, source.filename)


def collect_names(module: ModuleType, patches: list[Patch], ours: set[str]) -> dict[str, Any]:
  """The names that replacements may use, checked against the module's own values of them."""
  out: dict[str, Any] = {}
  for patch in patches:
    for name, value in patch.names.items():
      bound = out.get(name, _MISSING if name in ours else module.__dict__.get(name, _MISSING))
      if bound is not _MISSING and bound is not value:
        raise PatchError(
          f'{name!r} already refers to {bound!r} in {module.__name__}; in the patch it is {value!r}',
          where=str(module.__file__),
          hint=f'use another name: names={{{"my_" + name!r}: …}}',
        )
      if name in ours or name not in module.__dict__:
        out[name] = value
  return out


def _leads_to(found: Any, namespace: dict) -> bool:
  """Whether `found` is this module's function, or a wrapper that holds it or calls it by a global name."""
  left, seen = [found], set[int]()
  while left and len(seen) < 10_000:
    thing = left.pop()
    if id(thing) in seen or isinstance(thing, ModuleType | type | CodeType):
      continue
    seen.add(id(thing))
    if not isinstance(thing, FunctionType):
      left += gc.get_referents(thing)
      continue
    if thing.__globals__ is namespace:
      return True
    left += [thing.__closure__, vars(thing), thing.__defaults__, thing.__kwdefaults__]
    left += [thing.__globals__.get(name) for name in thing.__code__.co_names]
  return False


def _put(namespace: dict, name: str, value: Any) -> None:
  if value is _MISSING:
    namespace.pop(name, None)
  else:
    namespace[name] = value


def _signature(code: CodeType) -> tuple:
  count = code.co_argcount + code.co_kwonlyargcount
  flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
  return code.co_argcount, code.co_posonlyargcount, flags, code.co_varnames[:count]


def _other_closure(source: UpstreamSource, function: FunctionType, code: CodeType) -> PatchError:
  old, new = function.__code__.co_freevars, code.co_freevars
  return PatchError(
    f'{function.__qualname__} closes over {list(old)} and its patched code over {list(new)}, so '
    'it cannot be patched in place',
    where=f'{source.filename}:{code.co_firstlineno}',
    cause='the rule brings in or removes super() or __class__'
    if '__class__' in {*old, *new}
    else None,
    hint='write super(Class, self), or call install_on_import() before anything imports the module',
  )
