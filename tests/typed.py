"""Public functions whose annotations are checked at every call, and the share of `Any` among annotations.

    with typed.checked('mechjax.harvest') as calls:
      harvest.reap(model, sites='*')(x)
    assert calls.missing() == set()

Inside the block every public function and method of the room, under every name that a module has for it, is wrapped by
jaxtyping with beartype. Fields of public dataclasses are checked where an object is an argument or a result of such a
call, and not when it is made, because JAX makes objects of these classes whose fields are no arrays.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterator

import beartype
import beartype.door
import jaxtyping
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DUNDERS = ('__init__', '__call__')


# --- the share of Any ---------------------------------------------------------------------------------


def annotations(room: str) -> Iterator[tuple[str, str]]:
  """Iterates over (place, annotation) of the public signatures and fields of a room; '' for a missing one."""
  top = ROOT.joinpath(*room.split('.'))
  files = sorted(top.rglob('*.py')) if top.is_dir() else [top.with_suffix('.py')]
  for path in files:
    if path.name == '__init__.py' or not path.name.startswith('_'):
      for node in _public_nodes(ast.parse(path.read_text())):
        for annotation in _annotations_of(node):
          text = '' if annotation is None else ast.unparse(annotation)
          yield f'{path.relative_to(ROOT)}:{node.lineno}', text


def _public_nodes(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AnnAssign]:
  for node in tree.body:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      yield node
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and _is_public(inner.name):
          yield inner
        if isinstance(inner, ast.AnnAssign) and not ast.unparse(inner.target).startswith('_'):
          yield inner


def _annotations_of(node: ast.FunctionDef | ast.AnnAssign) -> list[ast.expr | None]:
  if isinstance(node, ast.AnnAssign):
    return [node.annotation]
  a = node.args
  every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
  return [x.annotation for x in every if x.arg not in ('self', 'cls')] + [node.returns]


def _is_public(name: str) -> bool:
  return not name.startswith('_') or name in DUNDERS


def is_vague(annotation: str) -> bool:
  """Whether an annotation is missing or says `Any` somewhere."""
  if not annotation:
    return True
  names = (n.id for n in ast.walk(ast.parse(annotation)) if isinstance(n, ast.Name))
  return 'Any' in names


def vague_share(room: str) -> tuple[float, list[str]]:
  """The share of vague annotations of a room, and where they are."""
  every = list(annotations(room))
  vague = [f'{place} {text}' for place, text in every if is_vague(text)]
  return len(vague) / len(every), vague


# --- checked calls ------------------------------------------------------------------------------------


class Calls:
  """The public functions of some rooms, and those that were called.

  Attributes:
    public: dotted names of all of them.
    called: dotted names of those that were called.
  """

  def __init__(self) -> None:
    self.public: set[str] = set()
    self.called: set[str] = set()

  def missing(self) -> set[str]:
    return self.public - self.called


@contextlib.contextmanager
def checked(*rooms: str) -> Iterator[Calls]:
  """Checks the annotations of all public functions of these rooms at every call inside the block."""
  calls = Calls()
  with pytest.MonkeyPatch.context() as patch:
    for module in (m for room in rooms for m in modules(room)):
      for name, thing in list(vars(module).items()):
        if name.startswith('_') or getattr(thing, '__module__', None) != module.__name__:
          continue
        if inspect.isclass(thing):
          _check_class(thing, calls, patch)
        elif inspect.isfunction(thing):
          _replace(thing, checking(thing, calls), patch)
    yield calls


def modules(room: str) -> list[types.ModuleType]:
  """The public modules of a room, imported."""
  top = importlib.import_module(room)
  found = pkgutil.walk_packages(getattr(top, '__path__', ()), f'{room}.')
  names = [m.name for m in found if not m.name.rpartition('.')[2].startswith('_')]
  return [top, *map(importlib.import_module, names)]


def checking(f: Callable, calls: Calls | None = None) -> Callable:
  """Wraps a function so that its annotations are checked at every call."""
  calls = Calls() if calls is None else calls
  name = f'{f.__module__}.{f.__qualname__}'
  calls.public.add(name)
  # Raises if an annotation cannot be resolved, which jaxtyping would ignore.
  typing.get_type_hints(f)
  inner = f
  if not _makes_a_context(f):  # annotated as the generator that it is made of
    inner = jaxtyping.jaxtyped(f, typechecker=beartype.beartype)  # type: ignore[call-overload]

  @functools.wraps(f)
  def call(*args, **kwargs):
    __tracebackhide__ = True
    calls.called.add(name)
    out = inner(*args, **kwargs)
    for x in (*args, *kwargs.values(), out):
      check_fields(x)
    return out

  return call


def _makes_a_context(f: Callable) -> bool:
  return f.__code__.co_filename == contextlib.__file__


def _check_class(cls: type, calls: Calls, patch: pytest.MonkeyPatch) -> None:
  for name, member in list(vars(cls).items()):
    if not _is_public(name) or (name == '__init__' and dataclasses.is_dataclass(cls)):
      continue
    if isinstance(member, classmethod | staticmethod):
      patch.setattr(cls, name, type(member)(checking(member.__func__, calls)))
    elif isinstance(member, property):
      get, put = (f and checking(f, calls) for f in (member.fget, member.fset))
      patch.setattr(cls, name, property(get, put, member.fdel, member.__doc__))
    elif isinstance(member, functools.cached_property):
      new = functools.cached_property(checking(member.func, calls))
      new.__set_name__(cls, name)
      patch.setattr(cls, name, new)
    elif inspect.isfunction(member):
      patch.setattr(cls, name, checking(member, calls))


def _replace(old: Callable, new: Callable, patch: pytest.MonkeyPatch) -> None:
  for module in list(sys.modules.values()):
    if getattr(module, '__name__', '').split('.')[0] in ('mechjax', 'tests', 'patches'):
      for name, thing in list(vars(module).items()):
        if thing is old:
          patch.setattr(module, name, new)


# --- fields -------------------------------------------------------------------------------------------


def check_fields(thing: object) -> None:
  """Checks the fields of a public dataclass of mechjax, and of those in a list or tuple."""
  if isinstance(thing, list | tuple):
    for x in thing:
      check_fields(x)
  kind = type(thing)
  if not dataclasses.is_dataclass(kind) or kind.__module__.split('.')[0] != 'mechjax':
    return
  with jaxtyping.jaxtyped('context'):  # type: ignore[call-overload]
    for name, hint in _fields(kind).items():
      where = f'{kind.__name__}.{name}: '
      beartype.door.die_if_unbearable(getattr(thing, name), hint, exception_prefix=where)


@functools.cache
def _fields(kind: type) -> dict[str, typing.Any]:
  if kind.__name__.startswith('_'):
    return {}
  hints = typing.get_type_hints(kind)
  names = [f.name for f in dataclasses.fields(kind) if not f.name.startswith('_')]
  return {name: hints[name] for name in names}
