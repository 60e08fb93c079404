"""Values that a function reads besides its arguments, and whether they have changed.

A staged program is a snapshot: the values that the function closes over, the globals that it names and the attributes
of the objects that it uses are constants in it. A researcher changes such values all the time (`model.params = …`,
`strength = 3.0`) and expects the next call to see the change. So every staged program has a `Watch`: the objects that
were read, held by identity, which are compared before the program is used again.

    watch = Watch(f)
    watch.has_changed()      # whether anything that `f` reads is another object, another number, another array

How. From the function the walk follows closures, defaults, the globals that its code names (and the attributes that it
names of modules), bound objects and their attributes, containers, and recursively the functions found there. Numbers
and strings are compared by value, NumPy arrays by their content, everything else by identity; JAX arrays are immutable.
A comparison costs about 30 nanoseconds per value.

Sharp edges.
  - In installed packages, the standard library and mechjax only closures are followed, not globals: the changes that
    a patch makes there are counted by `code_version`, an assignment made there by hand is not noticed.
  - Of an object that has `__mechjax_reads__`, a tuple of attribute names, only these attributes are compared.
  - Beyond `LIMIT` values nothing is compared, and the function counts as changed at every call.
  - Files, random generators and other state outside of Python attributes are not noticed, as with `jax.jit`.
"""

from __future__ import annotations

import array
import collections
import contextlib
import contextvars
import dataclasses
import functools
import operator
import os
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import (
  BuiltinFunctionType,
  CodeType,
  FunctionType,
  MappingProxyType,
  MethodType,
  MethodWrapperType,
  ModuleType,
)
from typing import Any

import jax
import numpy as np

from mechjax import code_version, compat

LIMIT = 200_000

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_ATOMS = (*_SCALARS, jax.Array, np.dtype, np.generic, CodeType)
_OPAQUE = ('jax', 'jaxlib', 'numpy', 'ml_dtypes', 'threading', '_thread', 'logging', 'weakref')
_MISSING: Any = object()
_PLAIN = (
  *(dict, list, tuple, frozenset, set, collections.deque, array.array, MappingProxyType),
  *(contextvars.ContextVar, weakref.ref),
)
_OURS = ('__mechjax_stager__', '__mechjax_version__')

_LIBRARIES = tuple(
  {
    os.path.realpath(path) + os.sep
    for path in (
      *(sysconfig.get_path(name) for name in ('stdlib', 'platstdlib')),
      os.path.dirname(__file__),
      os.path.join(os.path.dirname(os.path.dirname(__file__)), 'patches'),
    )
  }
)


class Watch:
  """The values that some functions read besides their arguments, as they were when the watch was made.

  Attributes:
    traced: whether a tracer is among the values; a program that was staged with one must not be cached.
    classes: the user's classes among the values.
  """

  def __init__(self, *functions: Any):
    self.traced = False
    self.classes: tuple[type, ...] = ()
    self._patches = code_version.now()
    self._guards: list[tuple[Callable[[], Sequence], list]] = []
    self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
    self._seen: dict[int, Any] = {}
    self._waiting: list[Any] = list(functions)
    self._count = 0
    self._names: dict[str, None] = {}
    self._modules: dict[int, tuple[ModuleType, int]] = {}
    self._walk()
    for scratch in (self._seen, self._waiting, self._names, self._modules):
      scratch.clear()

  def has_changed(self) -> bool:
    """Whether any value differs from what it was."""
    if self._patches != code_version.now() or self._count >= LIMIT:
      return True
    for fetch, before in self._guards:
      now = fetch()
      if len(now) != len(before) or not (
        all(map(operator.is_, now, before)) or all(map(_is_equal, now, before))
      ):
        return True
    return not all(_same_array(now, before) for now, before in self._arrays)

  # --- the walk

  def _walk(self) -> None:
    """Visits the waiting values, and modules once more whenever a new name may be one of their attributes."""
    while self._count < LIMIT:
      if self._waiting:
        self._visit(self._waiting.pop())
        continue
      n = len(self._names)
      late = [module for module, known in self._modules.values() if known < n]
      if not late:
        return
      for module in late:
        self._modules[id(module)] = module, n
        self._visit_module(module)

  def _visit(self, x: Any) -> None:
    if isinstance(x, jax.core.Tracer):
      self.traced = True
    if isinstance(x, _ATOMS) or id(x) in self._seen:
      return
    self._seen[id(x)] = x
    if isinstance(x, FunctionType):
      self._visit_function(x)
    elif isinstance(x, MethodType):
      self._waiting += [x.__self__, x.__func__]
    elif isinstance(x, BuiltinFunctionType | MethodWrapperType):
      self._waiting.append(x.__self__)
    elif isinstance(x, functools.partial):
      self._waiting += [x.func, *x.args, x.keywords]
    elif isinstance(x, np.ndarray):
      self._visit_array(x)
    elif isinstance(x, type):
      self._visit_class(x)
    elif isinstance(x, ModuleType):
      self._modules.setdefault(id(x), (x, -1))
    elif not self._visit_container(x) or type(x) not in _PLAIN:
      self._visit_object(x)

  def _visit_container(self, x: Any) -> bool:
    """Watches the items of `x`; False if `x` is not a container."""
    if isinstance(x, dict | MappingProxyType):
      self._guard(lambda: [*x.keys(), *x.values()])
    elif isinstance(x, list):
      self._guard(lambda: x)
    elif isinstance(x, tuple | frozenset):
      self._count += len(x)
      self._waiting += x
    elif isinstance(x, set):
      self._guard(lambda: sorted(x, key=id))
    elif isinstance(x, collections.deque | array.array):
      self._guard(lambda: list(x))
    elif isinstance(x, contextvars.ContextVar):
      self._guard(lambda: [x.get(_MISSING)])
    elif isinstance(x, weakref.ref):
      self._guard(lambda: [x()])
    else:
      return False
    return True

  def _guard(self, fetch: Callable[[], Iterable]) -> None:
    now = list(fetch())
    self._guards.append((fetch, now))  # type: ignore[arg-type]
    self._count += len(now)
    self._waiting += now

  def _visit_function(self, f: FunctionType) -> None:
    if cells := f.__closure__ or ():
      self._guard(lambda: [_content(cell) for cell in cells])
    if _is_library(f.__code__.co_filename):
      return
    space, names = f.__globals__, _names(f.__code__)
    self._names.update(dict.fromkeys(names))
    own = [name for name in names if name in space]
    self._guard(
      lambda: [f.__code__, f.__defaults__, f.__kwdefaults__, *(space.get(n, _MISSING) for n in own)]
    )
    if f.__dict__:
      self._guard(functools.partial(_own_attributes, f.__dict__))
    # Modules that the function itself imports, and the environment.
    self._waiting += [sys.modules[name] for name in names if name in sys.modules]
    if 'getenv' in names:
      self._waiting.append(os.environ)

  def _visit_module(self, module: ModuleType) -> None:
    """Watches the attributes of a module that the functions visited so far may read: all names in their code."""
    space = module.__dict__
    used = [name for name in self._names if name in space]
    if used and not _is_frozen(module):
      self._guard(lambda: [space.get(name, _MISSING) for name in used])

  def _visit_class(self, cls: type) -> None:
    own = [base for base in cls.__mro__ if not _is_library(_file_of(base))]
    self.classes += (cls,) if own else ()
    for base in own:
      self._guard(functools.partial(_attributes, base))

  def _visit_object(self, x: Any) -> None:
    cls = type(x)
    if (wrapped := getattr(x, '__wrapped__', None)) is not None:
      self._waiting.append(wrapped)
    if isinstance(x, staticmethod | classmethod | property):
      parts = [x.fget, x.fset] if isinstance(x, property) else [x.__func__]
      self._waiting += parts
      return
    if cls.__module__.partition('.')[0] in _OPAQUE and not hasattr(x, '__dict__'):
      return
    self._waiting.append(cls)
    if (names := getattr(cls, '__mechjax_reads__', None)) is not None:
      self._guard(lambda: [getattr(x, name) for name in names])
      return
    if isinstance(own := getattr(x, '__dict__', None), dict):
      self._guard(functools.partial(_own_attributes, own))
    if slots := _slots(cls):
      self._guard(lambda: [_slot(slot, x) for slot in slots])

  def _visit_array(self, x: np.ndarray) -> None:
    self._count += 1
    if x.dtype == object:
      self._guard(lambda: x.ravel().tolist())
    else:
      self._arrays.append((x, x.copy()))


class Version:
  """A function as it is now: equal only to itself, so that a compiler reuses nothing of an earlier version.

  Attributes:
    fn: the function.
    watch: the watch over the function.
    memo: cache of results that callers derive from this version of the function.
  """

  def __init__(self, fn: Callable):
    self.fn = fn
    self.watch = Watch(fn)
    self.memo: dict[Any, Any] = {}

  def renew(self) -> None:
    """Restarts the watch: values that the function itself wrote while it was traced do not count as changes."""
    self.watch = Watch(self.fn)

  def __reduce__(self) -> tuple:
    return Version, (None,)  # a copy of the function is another function

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.fn(*args, **kwargs)


def version(fn: Callable) -> Version:
  """The `Version` of `fn`: the same object as long as nothing that `fn` reads has changed."""
  known = getattr(fn, '__mechjax_version__', None)
  if isinstance(known, Version) and known.fn is fn and not known.watch.has_changed():
    return known
  if isinstance(known, Version):
    compat.retrace()
  made = Version(fn)
  if not made.watch.traced:
    with contextlib.suppress(AttributeError, TypeError):
      fn.__mechjax_version__ = made  # type: ignore[attr-defined]
  return made


class Jitted:
  """`jax.jit(f)` that is compiled again when a value that the functions `reads` read has changed; see `jit`."""

  __mechjax_reads__ = ('f', 'reads')

  def __init__(self, f: Callable, reads: tuple[Callable, ...], options: dict[str, Any]):
    self.f, self.reads, self.options = f, reads, options
    self._watch: Watch | None = None
    self._jitted: Any = None

  def __call__(self, *args: Any) -> Any:
    if self._watch is not None and not self._watch.has_changed():
      return self._jitted(*args)
    # A new function object, because JAX caches the trace of a function.
    self._jitted = jax.jit(lambda *args: self.f(*args), **self.options)
    out = self._jitted(*args)
    self._watch = Watch(*self.reads)
    return out


def jit(f: Callable, *reads: Callable, **options: Any) -> Jitted:
  """Compiles `f`, which calls the user's functions `reads`; compiles it again when a value that they read changes.

  Args:
    f: the function.
    *reads: the functions whose values are watched.
    **options: options of `jax.jit`.
  """
  return Jitted(f, reads, options)


def _is_equal(now: Any, before: Any) -> bool:
  """Whether a value counts as unchanged."""
  if now is before:
    return True
  return (
    type(now) is type(before)
    and isinstance(now, _SCALARS)
    and (now == before or (now != now and before != before))
    and (bool(now) or repr(now) == repr(before))  # 0.0 is not -0.0
  )


def is_alike(now: Any, before: Any) -> bool:
  """Whether two equal static arguments are alike in every part: 2 and 2.0 are equal, but give different programs."""
  if now is before or type(now) is not type(before):
    return now is before
  if isinstance(now, _SCALARS):
    return _is_equal(now, before)
  if isinstance(now, tuple | list):
    return len(now) == len(before) and all(a is b or is_alike(a, b) for a, b in zip(now, before))
  if dataclasses.is_dataclass(now) and not isinstance(now, type):
    names = [field.name for field in dataclasses.fields(now)]
    return all(is_alike(getattr(now, name), getattr(before, name)) for name in names)
  return True


def _same_array(now: np.ndarray, before: np.ndarray) -> bool:
  """Whether two arrays are equal bit for bit."""
  if now.shape != before.shape or now.dtype != before.dtype:
    return False
  a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (now, before))
  return np.array_equal(a, b)


def _attributes(cls: type) -> list[Any]:
  return [*vars(cls).values()]


def _own_attributes(attributes: dict[str, Any]) -> list[Any]:
  """Names and values, without the attributes that mechjax sets on functions and callable objects."""
  return [x for item in attributes.items() if item[0] not in _OURS for x in item]


def _content(cell: Any) -> Any:
  try:
    return cell.cell_contents
  except ValueError:  # a variable that has no value yet
    return _MISSING


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
  """Globals, attributes and modules that some code names or contains as a string, nested functions included."""
  names = dict.fromkeys(code.co_names)
  for const in code.co_consts:
    if isinstance(const, CodeType):
      names.update(dict.fromkeys(_names(const)))
    elif isinstance(const, str) and const.isidentifier():  # getattr(settings, 'strength')
      names[const] = None
  return tuple(names)


@functools.lru_cache(maxsize=4096)
def _is_library(filename: str) -> bool:
  path = os.path.realpath(filename)
  installed = any(f'{os.sep}{name}{os.sep}' in path for name in ('site-packages', 'dist-packages'))
  return filename.startswith('<frozen') or installed or path.startswith(_LIBRARIES)


def _is_frozen(module: ModuleType) -> bool:
  """Whether a module belongs to JAX, NumPy or mechjax, whose functions are taken to be constant."""
  return module.__name__.partition('.')[0] in ('mechjax', *_OPAQUE)


def _file_of(cls: type) -> str:
  module = sys.modules.get(cls.__module__)
  # A builtin has no file. A class typed into a notebook has none either, and is the user's.
  builtin = cls.__module__ in sys.builtin_module_names
  return '<frozen>' if builtin else getattr(module, '__file__', None) or '<typed>'


def _slots(cls: type) -> tuple[Any, ...]:
  """The descriptors of the slots of a class."""
  descriptors = (
    vars(base).get(name)
    for base in cls.__mro__
    for name in _as_tuple(vars(base).get('__slots__', ()))
  )
  return tuple(d for d in descriptors if hasattr(d, '__get__') and hasattr(d, '__set__'))


def _as_tuple(slots: Any) -> tuple[str, ...]:
  return (slots,) if isinstance(slots, str) else tuple(slots)


def _slot(descriptor: Any, x: Any) -> Any:
  try:
    return descriptor.__get__(x, type(x))
  except AttributeError:
    return _MISSING
