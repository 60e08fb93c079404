"""Code that runs while a module is defined, and the part of it that can be patched later.

Exchanging the code of functions reaches everything that runs when a function is called. Decorators,
defaults, annotations, class bodies and the statements of the module ran once, when it was imported,
and running them again would register twice and make second classes. Three kinds of module-level
statement can be executed later without harm, since all they do is bind names: assignments to plain
names, imports, and definitions of what was not there before. Everything else that differs between
two versions of a module is refused, with `install_on_import` as the alternative.
"""

from __future__ import annotations

import ast
import copy
import difflib
from typing import Any

from mechjax.errors import PatchError
from mechjax.patcher import sources
from mechjax.patcher.sources import UpstreamSource

_NEW = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def find_statements(source: UpstreamSource, old: ast.Module, new: ast.Module) -> list[ast.stmt]:
  """The module-level statements that must be executed to get from one tree to the other.

  Raises:
    PatchError: if a difference can only be applied by importing the module anew.
  """
  a, b = _shells(old), _shells(new)
  out: list[ast.stmt] = []
  for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
    if tag == 'equal':
      continue
    before, after = old.body[i1:i2], new.body[j1:j2]
    bound = {name for s in after for name in binds(s)}
    lost = {name for s in before for name in binds(s)} - bound
    fixed = [s for s in [*before, *after] if not binds(s)]
    fixed += [s for s in after if isinstance(s, _NEW) and i1 < i2]
    if fixed or lost:
      raise _definition_error(source, (fixed or before)[0])
    out += after
  return [ast.fix_missing_locations(copy.deepcopy(s)) for s in out]


def _definition_error(source: UpstreamSource, statement: ast.stmt) -> PatchError:
  return PatchError(
    f'the patch of {source.module} changes code that runs while the module or a class is defined',
    where=f'{source.filename}:{statement.lineno}',
    cause='a decorator, a default, a parameter, a class attribute or a module-level statement',
    hint='call install_on_import() before anything imports the module; in place, only the bodies '
    'of functions and module-level assignments can change',
  )


def binds(statement: ast.stmt) -> list[str]:
  """The names that a module-level statement binds, if it does nothing else; otherwise an empty list."""
  if isinstance(statement, ast.Import | ast.ImportFrom):
    names = [a.asname or a.name.partition('.')[0] for a in statement.names]
    return [] if '*' in names else names
  if isinstance(statement, _NEW):
    return [statement.name]
  inside = [n for n in ast.walk(statement) if isinstance(n, ast.Attribute | ast.Subscript)]
  stored = any(isinstance(n.ctx, ast.Store) for n in inside)
  return [] if stored else sources.bound_names(statement)


def _shells(tree: ast.Module) -> list[Any]:
  return [_shell(s) for s in tree.body]


def _shell(code: Any) -> Any:
  """Code without the bodies of functions, for comparisons: the rest runs at definition."""
  if isinstance(code, list):
    return tuple(map(_shell, code))
  if not isinstance(code, ast.AST):
    return repr(code)
  later = 'body' if isinstance(code, sources.FUNCTION | ast.Lambda) else None
  return type(code), *(_shell(getattr(code, f, None)) for f in code._fields if f != later)
