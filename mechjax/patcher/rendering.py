"""Patched source as text: one version for readers, one for debuggers.

`render_readable` is upstream's text with every replacement laid out on lines of its own; `Patcher.diff`
compares it with the original. `render_in_place` is the text that debuggers show: every line of upstream
keeps its number, so a replacement must fit into the lines of the code that it replaced. Statements are
joined by semicolons and suites pulled up to their headers, with upstream's own statements left where
they are; code compiled from this text has exact positions for tracebacks, pdb, coverage and
`inspect.getsource`.

Both are made by splicing: upstream's code is copied verbatim with its comments, and code that a rule
brought in is unparsed, with the upstream code inside it again verbatim.

Sharp edges: a replacement that cannot be laid out without moving upstream's lines (say, a `with`
around a loop body that holds an `if`) is shown as upstream's lines with a comment that states the
replacement, and its code keeps the positions of the syntax tree. If an expression inside an f-string
changes, the whole f-string is unparsed.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mechjax.patcher import layout
from mechjax.patcher.layout import SourceLine
from mechjax.patcher.rewriting import ReplacedSpan, is_ours
from mechjax.patcher.sources import UpstreamSource

Splice = tuple[int, int, str]
_HOLE = re.compile(r'_mechjax_hole_(\d+)_')
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.JoinedStr, ast.Constant)
_ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, *_DISPLAYS, *_COMPREHENSIONS)
_LOOSE = (ast.NamedExpr, ast.Yield, ast.YieldFrom)
_BARE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)


class _Inline(Exception):
  """Raised when a suite on the line of its header changed, so that the whole statement needs a new layout."""


def render_readable(source: UpstreamSource, tree: ast.Module) -> str:
  """Renders upstream's text with the replacements in it, for readers."""
  return _Renderer(source, tree).render(tree)


def render_in_place(source: UpstreamSource, tree: ast.Module) -> str:
  """Renders upstream's text with the replacements in it, every upstream line where it was."""
  return _InPlace(source, tree).render(tree)


class _Renderer:
  def __init__(self, source: UpstreamSource, tree: ast.Module):
    self.source, self.unit, self.flat = source, _unit(tree), False

  def render(self, tree: ast.Module) -> str:
    return self.splice(0, len(self.source.data), list(self.find_changes(tree)))

  def splice(self, start: int, stop: int, changes: list[Splice]) -> str:
    out, at = [], start
    for begin, end, text in sorted(changes):
      out += [self.source.data[at:begin].decode(), text]
      at = end
    return ''.join([*out, self.source.data[at:stop].decode()])

  def find_changes(self, node: ast.AST) -> Iterator[Splice]:
    """Yields the splices that must be made within the text of an upstream node."""
    for name, value in ast.iter_fields(node):
      items = value if isinstance(value, list) else [value]
      if items and isinstance(items[0], ast.stmt):
        yield from self.find_block_changes(items)
        continue
      for child in items:
        stands_for = getattr(child, 'stands_for', None)
        if stands_for is not None:
          text = self.wrap(self.render_expression(child), child, node, name)
          yield (*stands_for, self.fit(text, *stands_for))
        elif isinstance(child, ast.JoinedStr) and any(True for _ in self.find_changes(child)):
          start, stop = self.source.span(child)
          yield start, stop, self.fit(ast.unparse(child), start, stop)
        elif isinstance(child, ast.AST):
          yield from self.find_changes(child)

  def find_block_changes(self, block: list) -> Iterator[Splice]:
    groups: list[tuple[ReplacedSpan | None, list]] = []
    for statement in block:
      run = getattr(statement, 'stands_for', None)
      if run is not None and groups and groups[-1][0] is run:
        groups[-1][1].append(statement)
      else:
        groups.append((run, [statement]))
    spans = [(r.start, r.stop) if r else self.source.span(g[0]) for r, g in groups]
    for first, last in self.group_by_line([r is not None for r, _ in groups], spans):
      start, stop = spans[first][0], spans[last][1]
      statements = [s for _, g in groups[first : last + 1] for s in g]
      forced = groups[first][0] is None and first == last
      if forced:
        try:
          yield from list(self.find_changes(statements[0]))
          continue
        except _Inline:
          pass
      if self.prefix_of(start).strip():
        raise _Inline
      yield self.arrange(statements, forced, start, stop)

  def group_by_line(self, changed: list[bool], spans: list) -> Iterator[tuple[int, int]]:
    """Groups a changed run with its neighbours on the same line, which are joined to it by semicolons."""
    i = 0
    while i < len(spans):
      j = i
      while j + 1 < len(spans) and b'\n' not in self.source.data[spans[j][1] : spans[j + 1][0]]:
        j += 1
      if any(changed[i : j + 1]):
        yield i, j
      else:
        yield from ((k, k) for k in range(i, j + 1))
      i = j + 1

  def prefix_of(self, offset: int) -> str:
    return self.source.data[self.source.data.rfind(b'\n', 0, offset) + 1 : offset].decode()

  def render_expression(self, node: ast.expr) -> str:
    if self.flat:
      return ast.unparse(node)
    return self.fill(node)[0] if is_ours(node) else self.copy_verbatim(node)

  def copy_verbatim(self, node: ast.AST) -> str:
    return self.splice(*self.source.span(node), list(self.find_changes(node)))

  def render_statement(self, statement: Any) -> list[SourceLine]:
    """The logical lines of a statement at a new place."""
    compound = hasattr(statement, 'body') or hasattr(statement, 'cases')
    if is_ours(statement):
      return self.render_compound(statement) if compound else [self.render_simple(statement)]
    start, _ = self.source.span(statement)
    upstream_line = self.source.line_of(start)
    if not compound:
      return [replace(self.render_simple(statement), upstream_line=upstream_line)]
    try:
      return [
        SourceLine(0, self.unindent(self.copy_verbatim(statement), start), 'block', upstream_line)
      ]
    except _Inline:
      return self.render_compound(statement)

  def render_simple(self, statement: Any) -> SourceLine:
    if self.flat:
      text = ast.unparse(statement)
    elif is_ours(statement):
      text = self.fill(statement)[0]
    else:
      text = self.unindent(self.copy_verbatim(statement), self.source.span(statement)[0])
    return SourceLine(0, text, 'simple')

  def unindent(self, text: str, start: int) -> str:
    """Moves `text` from its indentation to the left margin; `start` is its offset in the source."""
    prefix = self.prefix_of(start)
    return layout.shift(text, len(prefix.lstrip()) - len(prefix))

  def render_compound(self, statement: Any) -> list[SourceLine]:
    """Renders a compound statement: headers are unparsed, inner statements come from `render_statement`."""
    text, statements = self.fill(statement)
    upstream_line = (
      None if is_ours(statement) else self.source.line_of(self.source.span(statement)[0])
    )
    out: list[SourceLine] = []
    for row in text.split('\n'):
      depth = (len(row) - len(row.lstrip(' '))) // 4
      hole = _HOLE.fullmatch(row.strip())
      if hole:
        out += [
          replace(l, depth=l.depth + depth) for l in self.render_statement(statements[int(hole[1])])
        ]
      elif row.strip():
        kind = 'decorator' if row.lstrip().startswith('@') else 'header'
        out.append(SourceLine(depth, row.strip(), kind, upstream_line if not out else None))
    return out

  def fill(self, node: Any) -> tuple[str, dict]:
    """Unparses a node that a rule brought in, with the upstream expressions in it verbatim.

    Returns:
      The text, and the statements of its blocks by the number of the hole that stands for each.
    """
    holes: dict[int, Any] = {}
    texts: dict[int, str] = {}
    skeleton = self.make_skeleton(node, holes, texts)
    text = ast.unparse(skeleton)
    return _HOLE.sub(lambda m: texts.get(int(m[1]), m[0]), text), holes

  def make_skeleton(self, node: Any, holes: dict, texts: dict) -> Any:
    new = copy.copy(node)
    for name, value in ast.iter_fields(node):
      items = value if isinstance(value, list) else [value]
      out: list[Any] = []
      for child in items:
        number = len(holes) + len(texts)
        whole = isinstance(child, ast.Name | ast.JoinedStr) or not isinstance(child, ast.AST)
        if isinstance(child, ast.stmt):
          holes[number] = child
          out.append(ast.Expr(_hole(number)))
        elif isinstance(child, ast.expr) and not is_ours(child) and not whole:
          texts[number] = ''
          text = self.unindent(self.copy_verbatim(child), self.source.span(child)[0])
          texts[number] = self.wrap(text, child, node, name)
          out.append(_hole(number))
        else:
          out.append(child if whole else self.make_skeleton(child, holes, texts))
      setattr(new, name, out if isinstance(value, list) else out[0])
    return new

  def wrap(self, text: str, node: Any, parent: ast.AST, field: str) -> str:
    """Adds parentheses to the text of an expression where it may need them."""
    enclosed = isinstance(parent, ast.Call | ast.keyword | ast.List | ast.Set) and field != 'func'
    if isinstance(node, ast.Starred | ast.Slice):
      return text
    if isinstance(node, _LOOSE) or (isinstance(node, ast.Tuple) and self.is_bare(node)):
      return f'({text})'
    if enclosed or (isinstance(parent, ast.Subscript) and field == 'slice'):
      return text
    number = isinstance(node, ast.Constant) and isinstance(parent, ast.Attribute)
    plain = isinstance(node, ast.Tuple) or (isinstance(node, _ATOMS) and not number)
    if '\n' not in text and (plain or isinstance(parent, _BARE)):
      return text
    return f'({text})'

  def is_bare(self, node: ast.Tuple) -> bool:
    if is_ours(node) or self.flat or not node.elts:
      return False
    return self.source.span(node)[0] == self.source.span(node.elts[0])[0]

  def fit(self, text: str, start: int, stop: int) -> str:
    """Fits the text of an expression into the place between two bytes of the source."""
    return f'({text})' if self.source.data[start : start + 1] == b'(' else text

  def arrange(self, statements: list[Any], forced: bool, start: int, stop: int) -> Splice:
    """Lays out statements in the place of those between two bytes of the source."""
    lines, last = self.render_statements(statements, forced), self.source.line_of(stop)
    comment = re.match(rb'[ \t]*#[^\n]*', self.source.data[stop:])
    for i, line in enumerate(lines[:-1]):
      if comment and line.upstream_line and line.upstream_line + line.text.count('\n') == last:
        lines[i] = replace(line, text=line.text + comment[0].decode())
        stop += comment.end()
        break
    return start, stop, layout.spread(lines, self.prefix_of(start), self.unit)

  def render_statements(self, statements: list[Any], forced: bool) -> list[SourceLine]:
    if forced:
      return self.render_compound(statements[0])
    return [line for s in statements for line in self.render_statement(s)]


class _InPlace(_Renderer):
  """Renders without moving any line of upstream."""

  def fit(self, text: str, start: int, stop: int) -> str:
    room = self.source.data.count(b'\n', start, stop)
    text = super().fit(text, start, stop)
    spare = room - text.count('\n')
    if spare < 0:
      text, spare = ' '.join(text.split('\n')), room
    if spare and text[-1] not in ')]}':
      text = f'({text})'
    return text[:-1] + '\n' * spare + text[-1] if spare else text

  def arrange(self, statements: list[Any], forced: bool, start: int, stop: int) -> Splice:
    first, last = self.source.line_of(start), self.source.line_of(stop)
    lines: list[SourceLine] = []
    for self.flat in (False, True):
      lines = self.render_statements(statements, forced)
      text = layout.squeeze(lines, self.prefix_of(start), self.unit, first, last)
      if text is not None:
        break
    else:
      text = layout.annotate(lines, self.source.data[start:stop].decode())
    self.flat = False
    return start, stop, text


def _hole(number: int) -> ast.Name:
  return ast.Name(f'_mechjax_hole_{number}_', ast.Load())


def _unit(tree: ast.Module) -> str:
  """The indentation that upstream uses for one level."""
  for node in ast.walk(tree):
    suite: Any = getattr(node, 'body', None)
    if isinstance(node, ast.stmt) and isinstance(suite, list) and not is_ours(node):
      depth = suite[0].col_offset - node.col_offset
      if not is_ours(suite[0]) and suite[0].lineno > node.lineno and depth > 0:
        return ' ' * depth
  return '  '
