"""Upstream source: its file, its text, and the places of its members.

A patch must be checkable on a machine where importing upstream would take a minute, need an
accelerator, or fail. So the source is found the way the import system finds it, package by package,
without running any of them; for a module that is already imported, its own spec is used.

A member is named by the path that leads to it from the module: `Block.__call__`, `apply_rope`,
`make.inner`, a name that is assigned (`SCALE`, `act = lambda x: …`), or the empty string for the
module's own statements. A name that is bound several times (a property and its setter, both
branches of an `if`) refers to all of its bindings.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from mechjax.errors import PatchError, nearest

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class UpstreamSource:
  """The text of an upstream module.

  Attributes:
    module: its dotted name.
    filename: its file; compiled code carries this name.
    text: the text; each line ends with a newline character.
  """

  module: str
  filename: str
  text: str

  def parse(self) -> ast.Module:
    """Parses the text into a fresh syntax tree, which the caller may change."""
    return ast.parse(self.text, self.filename)

  @cached_property
  def data(self) -> bytes:
    """The text in UTF-8; the columns of a syntax tree count its bytes."""
    return self.text.encode()

  @cached_property
  def _starts(self) -> list[int]:
    return [0, *(m.end() for m in re.finditer(b'\n', self.data))]

  def span(self, node: ast.AST) -> tuple[int, int]:
    """Start and end of `node` in `data`, from its first decorator, if it has any."""
    start = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    for decorator in getattr(node, 'decorator_list', [])[:1]:
      at = self._starts[decorator.lineno - 1] + decorator.col_offset
      start = self.data.rindex(b'@', 0, at)
    return start, self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

  def line_of(self, offset: int) -> int:
    """Number of the line that contains a byte of `data`; the first line is 1."""
    return self.data.count(b'\n', 0, offset) + 1


def locate(module: str) -> UpstreamSource | None:
  """Finds the source of a module without running it or the packages it is in.

  Args:
    module: a dotted name.

  Returns:
    The source, or None if there is no such module.

  Raises:
    PatchError: if the module exists but has no Python source.
  """
  loaded = sys.modules.get(module)
  if loaded is not None and loaded.__spec__ is not None:
    return from_spec(loaded.__spec__)
  top, *rest = module.split('.')
  try:
    spec = importlib.util.find_spec(top)
  except ValueError:
    spec = None
  name = top
  for part in rest:
    if spec is None or spec.submodule_search_locations is None:
      return None
    name += '.' + part
    spec = _find_within(name, spec.submodule_search_locations)
  return None if spec is None else from_spec(spec)


def _find_within(name: str, folders: Iterable[str]) -> importlib.machinery.ModuleSpec | None:
  """Finds the spec of a module in one of these folders; a namespace package may span several."""
  portions: list[str] = []
  for folder in folders:
    importer: Any = pkgutil.get_importer(folder)
    spec = importer.find_spec(name) if importer else None
    if spec is not None and spec.loader is not None:
      return spec
    portions += spec.submodule_search_locations if spec else []
  if not portions:
    return None
  spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
  spec.submodule_search_locations = portions
  return spec


def from_spec(spec: importlib.machinery.ModuleSpec) -> UpstreamSource:
  """The source that an import spec points at."""
  read = getattr(spec.loader, 'get_source', None)
  text = read(spec.name) if read else None
  if text is None and str(spec.origin).endswith('.py') and os.path.isfile(str(spec.origin)):
    with tokenize.open(str(spec.origin)) as file:  # a loader of another kind, such as pytest's
      text = file.read()
  if text is None:
    raise PatchError(
      f'{spec.name} has no Python source to patch',
      where=str(spec.origin),
      cause='it is compiled, built in, or a namespace package',
    )
  return UpstreamSource(spec.name, str(spec.origin), text if text.endswith('\n') else text + '\n')


def from_module(module: ModuleType) -> UpstreamSource:
  """The source of an imported module."""
  if module.__spec__ is None:
    raise PatchError(
      f'{module.__name__} was not imported from a file, so it has no source to patch'
    )
  return from_spec(module.__spec__)


def version(distribution: str) -> str | None:
  """The installed version of a distribution, or None."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def members(source: UpstreamSource, tree: ast.Module, path: str) -> list[tuple[list, int]]:
  """Definitions of the member `path`: (block, index) of each of its statements.

  Raises:
    PatchError: if there is no such member; the error names the nearest ones.
  """
  places = [place for name, place in definitions(tree, path) if name == path]
  if not places:
    names = {name for name, _ in definitions(tree)}
    same_end = [n for n in names if n.rpartition('.')[2] == path.rpartition('.')[2]]
    near = nearest(path, names) or sorted(same_end)[:5]
    raise PatchError(
      f'{source.module} has no member {path!r}',
      where=source.filename,
      cause='upstream renamed, moved or removed it',
      hint=f'the nearest are {", ".join(map(repr, near))}' if near else None,
    )
  return places


def definitions(
  tree: ast.Module, towards: str | None = None
) -> Iterator[tuple[str, tuple[list, int]]]:
  """Yields the members of a module: path, and (block, index) of the statement that defines it.

  Args:
    tree: the module.
    towards: a path; members of functions and classes that do not lead to it are left out. None for all.
  """
  yield from _definitions(tree.body, '', towards)


def _definitions(
  body: list, prefix: str, towards: str | None
) -> Iterator[tuple[str, tuple[list, int]]]:
  for i, statement in enumerate(body):
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      name = prefix + statement.name
      yield name, (body, i)
      if towards is None or towards.startswith(f'{name}.'):
        yield from _definitions(statement.body, f'{name}.', towards)
      continue
    for name in bound_names(statement):
      yield prefix + name, (body, i)
    for field in ('body', 'orelse', 'finalbody', 'handlers', 'cases'):
      block = getattr(statement, field, [])
      for inner in [block] if block and isinstance(block[0], ast.stmt) else [p.body for p in block]:
        yield from _definitions(inner, prefix, towards)


def bound_names(statement: ast.stmt) -> list[str]:
  """The plain names that an assignment binds, in order; empty for other statements."""
  if isinstance(statement, ast.Assign):
    targets = statement.targets
  elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
    targets = [statement.target]
  else:
    return []
  names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
  return [n.id for n in names if isinstance(n.ctx, ast.Store)]
