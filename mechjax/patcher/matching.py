"""Comparing a rule with upstream code, node by node.

A syntax tree is compared field by field. Three things are ignored: contexts (a name is the same name
whether it is read or written), positions, and the split of a call into positional and keyword
arguments, which here are one list, so that `$$arguments` can stand for some of both.

Most of a pattern is rigid: it agrees with a node in one way or not at all. Only below a `$$` can
there be several ways, which are tried shortest first, so the search backtracks only there.

Sharp edges: a run of statements that begins or ends with `$$rest` reaches to the beginning or end
of its block, because it would otherwise match many times. An expression is found only where it is read: the
pattern `x` does not find the `x` in `x = 1`. Keyword arguments are compared in the order in which
they are evaluated; write `f($$a, axis=-1, $$b)` to find one among others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mechjax.patcher import patterns

Bindings = dict[str, Any]
_IGNORED = {'ctx', 'kind', 'type_comment', 'type_ignores'}


class Parameter(ast.AST):
  """One parameter of a function: Python's tree spreads these over seven lists."""

  _fields = ('role', 'arg', 'default')

  def __init__(self, role: str = '', arg: Any = None, default: ast.expr | None = None):
    self.role, self.arg, self.default = role, arg, default
    self.flexible = any(getattr(part, 'flexible', False) for part in (arg, default))


@dataclass(frozen=True)
class Match:
  """A place where a rule applies.

  Attributes:
    holder: the list that holds the matched code, or the node of which it is a field.
    place: the slice of the list, or the name of the field.
    nodes: the matched code.
    bindings: the code that each hole holds.
  """

  holder: Any
  place: Any
  nodes: list
  bindings: Bindings

  def put(self, nodes: list) -> None:
    """Replaces the matched code by other nodes."""
    if isinstance(self.holder, list):
      self.holder[self.place] = nodes
    else:
      setattr(self.holder, self.place, nodes[0])


def agree(pattern: Any, node: Any, bindings: Bindings) -> Bindings | None:
  """Compares rigid code (no `$$` in it) with `node`.

  Returns:
    The bindings, extended by the holes of `pattern`; None if they differ.
  """
  hole = patterns.one(pattern)
  if hole:
    return _bind(bindings, '$' + hole, node) if _fills(pattern, node) else None
  if type(pattern) is not type(node):
    return None
  if isinstance(pattern, ast.AST):
    pattern, node = view(pattern), view(node)
  if isinstance(pattern, list):
    if len(pattern) != len(node):
      return None
    for p, n in zip(pattern, node):
      found = agree(p, n, bindings)
      if found is None:
        return None
      bindings = found
    return bindings
  return bindings if pattern == node else None


def equal(a: Any, b: Any) -> bool:
  """Whether two pieces of code are the same except for formatting."""
  return agree(a, b, {}) is not None


def unify(pattern: Any, node: Any, bindings: Bindings) -> Iterator[Bindings]:
  """Yields the bindings of every way in which `pattern` agrees with `node`, shortest `$$` first."""
  if isinstance(pattern, list):
    if isinstance(node, list):
      yield from _sequence(pattern, node, bindings)
  elif not getattr(pattern, 'flexible', False):
    found = agree(pattern, node, bindings)
    if found is not None:
      yield found
  elif type(pattern) is type(node):
    yield from _sequence(view(pattern), view(node), bindings)


def _sequence(ps: list, ns: list, bindings: Bindings) -> Iterator[Bindings]:
  for i, p in enumerate(ps):
    hole = patterns.many(p)
    if hole:
      for end in range(i, len(ns) + 1):
        taken = _bind(bindings, '$$' + hole, ns[i:end])
        if taken is not None:
          yield from _sequence(ps[i + 1 :], ns[end:], taken)
      return
    if i >= len(ns):
      return
    if isinstance(p, list) or getattr(p, 'flexible', False):
      for matched in unify(p, ns[i], bindings):
        yield from _sequence(ps[i + 1 :], ns[i + 1 :], matched)
      return
    found = agree(p, ns[i], bindings)
    if found is None:
      return
    bindings = found
  if len(ns) == len(ps):
    yield bindings


def _fills(pattern: Any, node: Any) -> bool:
  if isinstance(pattern, ast.AST):
    return isinstance(node, ast.expr) and not isinstance(node, ast.Starred | ast.FormattedValue)
  return isinstance(node, str)


def _bind(bindings: Bindings, hole: str, value: Any) -> Bindings | None:
  if hole not in bindings:
    return bindings | {hole: value}
  return bindings if equal(_plain(bindings[hole]), _plain(value)) else None


def _plain(value: Any) -> Any:
  return value.id if isinstance(value, ast.Name) else value


def view(node: ast.AST) -> list:
  """The values of a node that matter in a comparison, in a fixed order."""
  if isinstance(node, ast.Call):
    return [node.func, arguments(node.args, node.keywords)]
  if isinstance(node, ast.ClassDef):
    rest = [node.name, node.body, node.decorator_list, getattr(node, 'type_params', [])]
    return [*rest, arguments(node.bases, node.keywords)]
  if isinstance(node, ast.arguments):
    return [parameters(node)]
  return [getattr(node, name, None) for name in node._fields if name not in _IGNORED]


def arguments(args: list, keywords: list) -> list:
  """Positional and keyword arguments as one list; a `$$` stands where it was written."""
  both = [*args, *keywords]
  if any(patterns.many(a) for a in args):
    both.sort(key=lambda a: (a.lineno, a.col_offset))
  return both


def parameters(node: ast.arguments) -> list[Parameter]:
  """The parameters of a function in the order in which they are written."""
  plain = [('positional', a) for a in node.posonlyargs] + [('plain', a) for a in node.args]
  defaults = [None] * (len(plain) - len(node.defaults)) + node.defaults
  out = [Parameter(role, a, d) for (role, a), d in zip(plain, defaults)]
  out += [Parameter('star', node.vararg, None)] if node.vararg else []
  out += [Parameter('keyword', a, d) for a, d in zip(node.kwonlyargs, node.kw_defaults)]
  return out + ([Parameter('double star', node.kwarg, None)] if node.kwarg else [])


def find(pattern: Any, region: list) -> list[Match]:
  """Finds every place in `region` where `pattern` matches, in source order.

  Args:
    pattern: an expression, or a list of statements.
    region: (holder, place) pairs of the statements to search; see `sources.members`.
  """
  matches: list[Match] = []
  for holder, index in region:
    if isinstance(pattern, list):
      for block, start, stop in [(holder, index, index + 1), *_blocks(holder[index])]:
        matches += _runs(pattern, block, start, stop)
    else:
      matches += _expressions(pattern, holder[index])
  return matches


def find_outside_functions(pattern: Any, body: list) -> list[Match]:
  """Finds matches among the module's own statements, not in the bodies of functions and classes."""
  own = [s for s in body if not _is_scope(s)]
  if not isinstance(pattern, list):
    return [m for s in own for m in _expressions(pattern, s, skip=_is_scope)]
  blocks = [(body, 0, len(body)), *(b for s in own for b in _blocks(s, skip=_is_scope))]
  return [m for block, start, stop in blocks for m in _runs(pattern, block, start, stop)]


def _is_scope(node: ast.AST) -> bool:
  return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _never(node: ast.AST) -> bool:
  return False


def _blocks(node: ast.AST, skip=_never) -> Iterator[tuple[list, int, int]]:
  for _, value in ast.iter_fields(node):
    items = value if isinstance(value, list) else [value]
    if items and isinstance(items[0], ast.stmt):
      yield items, 0, len(items)
    for item in items:
      if isinstance(item, ast.stmt | ast.excepthandler | ast.match_case) and not skip(item):
        yield from _blocks(item, skip)


def _runs(pattern: list, block: list, start: int, stop: int) -> Iterator[Match]:
  first, last = patterns.many(pattern[0]), patterns.many(pattern[-1])
  for begin in [start] if first else range(start, stop):
    for end in [stop] if last else _ends(pattern, begin, stop):
      matched = next(_sequence(pattern, block[begin:end], {}), None)
      if matched is not None and end > begin:
        yield Match(block, slice(begin, end), block[begin:end], matched)
        break


def _ends(pattern: list, begin: int, stop: int) -> range:
  fixed = sum(not patterns.many(p) for p in pattern)
  if fixed == len(pattern):
    return range(begin + fixed, min(begin + fixed, stop) + 1)
  return range(begin + fixed, stop + 1)


def is_read(node: object) -> bool:
  """Whether a node is an expression that is read, rather than written to."""
  whole = isinstance(node, ast.expr) and not isinstance(node, ast.Starred | ast.FormattedValue)
  return whole and isinstance(getattr(node, 'ctx', ast.Load()), ast.Load)


def _expressions(pattern: ast.expr, node: ast.AST, skip=_never) -> Iterator[Match]:
  for name, value in ast.iter_fields(node):
    items = value if isinstance(value, list) else [value]
    for i, item in enumerate(items):
      if not isinstance(item, ast.AST) or skip(item):
        continue
      if is_read(item) and not (isinstance(node, ast.JoinedStr) or name == 'format_spec'):
        matched = next(unify(pattern, item, {}), None)
        if matched is not None:
          listed = isinstance(value, list)
          yield Match(
            value if listed else node, slice(i, i + 1) if listed else name, [item], matched
          )
      yield from _expressions(pattern, item, skip)
