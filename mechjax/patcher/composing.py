"""Composes the source of a module and the patches on it into code that can be run.

All patches of a module are composed from its original source each time one of them is installed or
uninstalled, so the code that runs never depends on the order of earlier installs and uninstalls, only
on which patches are installed now. The last results are cached, since a notebook enters the same
`with PATCHER:` again and again.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple, Protocol

from mechjax.errors import PatchError
from mechjax.patcher import drift, matching, rendering, rewriting, sources
from mechjax.patcher.drift import Checked
from mechjax.patcher.patterns import Rule
from mechjax.patcher.rewriting import Applied
from mechjax.patcher.sources import UpstreamSource

Key = tuple[str, int, int]


class Patch(Protocol):
  """The attributes of a patch that composing reads; see `Patcher`."""

  rules: tuple[tuple[str, Rule], ...]
  checked: Checked | None
  names: dict[str, Any]


class _Declaration(NamedTuple):
  """A patch without the objects that its names refer to: a cache key, which must not keep them alive."""

  rules: tuple[tuple[str, Rule], ...]
  checked: Checked | None
  names: frozenset[str]


@dataclass(frozen=True)
class Composite:
  """A module's code with patches applied.

  Attributes:
    tree: the syntax tree.
    display: the text to show in debuggers, with upstream's line numbers.
    code: the compiled module.
    applied: every rule, and where it matched.
  """

  tree: ast.Module
  display: str
  code: CodeType
  applied: tuple[Applied, ...]


def rewrite(
  source: UpstreamSource, patches: Sequence[Patch | _Declaration]
) -> tuple[ast.Module, list[Applied]]:
  """Applies patches in order to a fresh tree.

  Raises:
    PatchError: if a rule does not apply; the error shows the most similar code of upstream.
  """
  tree, applied = source.parse(), []
  for patch in patches:
    variables: dict[str, dict[str, int]] = {}
    for member, rule in patch.rules:
      try:
        if member and member not in variables:
          variables[member] = _variables(source, tree, member)
        _check_names(source, member, rule, patch.names, variables.get(member, {}))
        applied.append(rewriting.apply(source, tree, member, rule))
      except PatchError as error:
        raise drift.explain(error, source, tree, member, rule, patch.checked) from None
  return tree, applied


def _variables(source: UpstreamSource, tree: ast.Module, member: str) -> dict[str, int]:
  """The names that a member binds, each with a line on which it is bound."""
  nodes = [n for block, i in sources.members(source, tree, member) for n in ast.walk(block[i])]
  out = {n.arg: n.lineno for n in nodes if isinstance(n, ast.arg)}
  stored = (n for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load))
  return out | {n.id: n.lineno for n in stored}


def _check_names(
  source: UpstreamSource, member: str, rule: Rule, names: Iterable[str], variables: dict[str, int]
) -> None:
  """Raises if a name for replacements is also a variable of the member."""
  template = rule.template if isinstance(rule.template, list) else [rule.template]
  used = {n.id for part in template for n in ast.walk(part) if isinstance(n, ast.Name)}
  for name in sorted(used & set(names) & set(variables)):
    raise PatchError(
      f'the replacement uses {name!r}, which is a variable in {member}',
      where=f'{source.filename}:{variables[name]}',
      hint='give it another name in names= and in the rules',
    )


def compose(source: UpstreamSource, patches: Sequence[Patch]) -> Composite:
  """Applies patches in order and compiles the module, under upstream's file name."""
  return _compose(
    source, tuple(_Declaration(p.rules, p.checked, frozenset(p.names)) for p in patches)
  )


@functools.lru_cache(maxsize=32)
def _compose(source: UpstreamSource, patches: tuple[_Declaration, ...]) -> Composite:
  if not patches:
    tree = source.parse()
    return Composite(tree, source.text, _compile_tree(source, tree), ())
  tree, applied = rewrite(source, patches)
  display = rendering.render_in_place(source, tree)
  tree = _position(tree, display)
  return Composite(tree, display, _compile_tree(source, tree), tuple(applied))


def _position(tree: ast.Module, display: str) -> ast.Module:
  """Gives the tree the positions of its displayed text, if that text parses to the same tree."""
  try:
    shown = ast.parse(display)
  except SyntaxError:
    shown = None
  if shown is not None and matching.equal(shown, tree):
    return shown
  return ast.fix_missing_locations(tree)


def _compile_tree(source: UpstreamSource, tree: ast.Module) -> CodeType:
  try:
    return compile(tree, source.filename, 'exec', dont_inherit=True)
  except SyntaxError as error:
    raise PatchError(
      f'{source.module} does not compile with the patch: {error.msg}',
      where=f'{source.filename}:{error.lineno}',
      hint='`print(PATCHER.diff())` shows the patched text',
    ) from None


def functions(code: CodeType) -> dict[Key, CodeType]:
  """All code objects nested in a code object at any depth, keyed by qualified name, line and ordinal."""
  out: dict[Key, CodeType] = {}
  for child in _walk_code(code):
    ordinal = 0
    while (key := (child.co_qualname, child.co_firstlineno, ordinal)) in out:
      ordinal += 1
    out[key] = child
  return out


def _walk_code(code: CodeType) -> Iterator[CodeType]:
  for constant in code.co_consts:
    if isinstance(constant, CodeType):
      yield constant
      yield from _walk_code(constant)
