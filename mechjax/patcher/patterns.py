"""Rules of a patch: Python source with holes in it.

Upstream code is reformatted, its comments are rewritten, and its lines move. Its structure stays, so
a rule is written as the code itself (`attn_output += x`) and compared on the syntax tree: formatting,
comments, quotes and redundant parentheses never matter.

Two kinds of hole let a rule survive further changes:

    $name    one expression, or one identifier (`x.$attribute`, `def $f():`, `f($keyword=1)`)
    $$name   zero or more arguments, elements, parameters or statements

The same hole twice must hold the same code, and every hole may be used in the replacement. If both
sides are single expressions, the rule is about expressions and matches anywhere, inside calls too;
otherwise it is about a run of consecutive statements within one block.

Sharp edges: a hole inside a string, an f-string or a comment is text, not a hole. Multi-line rules
are dedented, so the first line should not stand alone on the line of the opening quotes. In `f(a,
$$rest)` the rest includes keyword arguments. An empty replacement leaves `pass`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mechjax.errors import PatchError

ONE = '_mechjax_one_'
MANY = '_mechjax_many_'
Count = int | Literal['all']

_STRING = r"""\"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
            | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'"""
STRING_OR_COMMENT = re.compile(_STRING + r' | \#[^\n]*', re.VERBOSE | re.DOTALL)
_HOLE = re.compile(
  STRING_OR_COMMENT.pattern + r' | \$\$(?P<many>[^\W\d]\w*) | \$(?P<one>[^\W\d]\w*)',
  re.VERBOSE | re.DOTALL,
)


def encode(text: str) -> str:
  """Spells the holes in `text` as identifiers that Python's parser accepts."""

  def spell(hole: re.Match) -> str:
    if hole['many']:
      return '*' + MANY + hole['many']
    return ONE + hole['one'] if hole['one'] else hole[0]

  return _HOLE.sub(spell, text)


def decode(text: str) -> str:
  """Inverts `encode`, for messages."""
  return text.replace('*' + MANY, '$$').replace(MANY, '$$').replace(ONE, '$')


def one(node: object) -> str | None:
  """The name of the `$name` that `node` is, or None."""
  text = node.id if isinstance(node, ast.Name) else node
  return text.removeprefix(ONE) if isinstance(text, str) and text.startswith(ONE) else None


def many(node: object) -> str | None:
  """The name of the `$$name` that an argument, element, parameter or statement is, or None."""
  if isinstance(node, ast.Expr):
    node = node.value
  if isinstance(node, ast.Starred) and isinstance(node.value, ast.Name):
    text = node.value.id
  else:
    text = getattr(node if isinstance(node, ast.arg) else getattr(node, 'arg', None), 'arg', '')
  return text.removeprefix(MANY) if isinstance(text, str) and text.startswith(MANY) else None


@dataclass(frozen=True)
class Rule:
  """One replacement.

  Attributes:
    before: the code to find, with holes.
    after: the replacement; it may use the holes of `before`.
    count: number of places that it must match, or 'all' for one or more.
    pattern, template: both sides parsed: an expression each, or a list of statements each.
  """

  before: str
  after: str
  count: Count = 1
  pattern: Any = field(init=False, repr=False, compare=False)
  template: Any = field(init=False, repr=False, compare=False)

  def __post_init__(self):
    if self.count != 'all' and (type(self.count) is not int or self.count < 1):
      raise PatchError(
        f"the count of a rule is {self.count!r}; it must be 'all' or a positive number",
        where=f'rule {self.before!r}',
      )
    pattern, template = parse(self.before), parse(self.after)
    if not pattern:
      raise PatchError('the code to find is empty', where=f'rule with replacement {self.after!r}')
    if is_expression(pattern) and is_expression(template):
      pattern, template = pattern[0].value, template[0].value
    unknown = sorted(find_holes(template) - find_holes(pattern))
    if unknown:
      raise PatchError(
        f'the replacement uses {", ".join(unknown)}, which the code to find does not bind',
        where=f'rule {self.before!r} -> {self.after!r}',
        hint='use the same name, with the same number of dollars, on both sides',
      )
    object.__setattr__(self, 'pattern', pattern)
    object.__setattr__(self, 'template', template)


def read_rules(entries: Iterable) -> tuple[Rule, ...]:
  """Parses the rules of one member.

  Args:
    entries: (before, after) or (before, after, count) tuples, or a flat before, after, …

  Returns:
    The rules in order.

  Raises:
    PatchError: for anything else, or source that does not parse.
  """
  entries = [entries] if isinstance(entries, str) else list(entries)
  if all(isinstance(entry, str) for entry in entries) and len(entries) % 2 == 0:
    return tuple(Rule(*pair) for pair in zip(entries[::2], entries[1::2]))
  for entry in entries:
    if not isinstance(entry, tuple | list) or len(entry) not in (2, 3):
      raise PatchError(
        f'{entry!r} is not a rule',
        hint='write (before, after) or (before, after, count), or a flat list before, after, …',
      )
  return tuple(Rule(*entry) for entry in entries)


def parse(text: str) -> list[Any]:
  """Parses source with holes; marks a node with a `$$` in or below it as `flexible`."""
  text = textwrap.dedent(text).strip('\n')
  try:
    body = ast.parse(encode(text)).body
  except SyntaxError as error:
    raise _syntax_error(text, error) from None
  _mark_flexible(body)
  _check_holes(body, text)
  return body


def is_expression(body: list[Any]) -> bool:
  return len(body) == 1 and isinstance(body[0], ast.Expr) and not many(body[0])


def find_holes(code: ast.AST | list) -> set[str]:
  """Finds the holes in parsed source, spelt as they are written."""
  return {decode(text) for text in _identifiers(code) if text.startswith((ONE, MANY))}


def _identifiers(code: object) -> Iterator[str]:
  if isinstance(code, str):
    yield code
  elif isinstance(code, list):
    for item in code:
      yield from _identifiers(item)
  elif isinstance(code, ast.AST) and not isinstance(code, ast.Constant):
    for _, value in ast.iter_fields(code):
      yield from _identifiers(value)


def _mark_flexible(code: Any) -> bool:
  below = code if isinstance(code, list) else []
  if isinstance(code, ast.AST):
    below = [value for _, value in ast.iter_fields(code)]
  marks = [_mark_flexible(part) for part in below]
  if not isinstance(code, ast.AST):
    return any(marks)
  code.flexible = any(marks) or many(code) is not None  # type: ignore[attr-defined]
  return code.flexible  # type: ignore[attr-defined]


_LISTS = {ast.Call: 'args', ast.ClassDef: 'bases'}
_LISTS |= dict.fromkeys([ast.List, ast.Tuple, ast.Set], 'elts')


def _check_holes(body: list[ast.stmt], text: str) -> None:
  """Raises for a `$$` that is not an item of a list."""
  nodes = list(ast.walk(ast.Module(body, [])))
  items = [part for n in nodes for part in getattr(n, _LISTS.get(type(n), ''), [])]
  items += [n.value for n in nodes if isinstance(n, ast.Expr)]
  placed = {id(item.value) for item in items if isinstance(item, ast.Starred)}
  for node in nodes:
    if isinstance(node, ast.Name) and node.id.startswith(MANY) and id(node) not in placed:
      raise _hole_error(decode(node.id), text)


def _hole_error(hole: str, text: str) -> PatchError:
  return PatchError(
    f'{hole} is used where exactly one expression is needed',
    where=f'rule\n{textwrap.indent(text, "    ")}',
    hint=f'write {hole[1:]}; two dollars are for arguments, elements, parameters and statements',
  )


def _syntax_error(text: str, error: SyntaxError) -> PatchError:
  number, column = error.lineno or 1, error.offset or 1
  lines = text.split('\n')
  line = encode(text).split('\n')[number - 1] if number <= len(lines) else ''
  caret = ' ' * len(decode(line[: column - 1])) + '^'
  shown = lines[:number] + [caret] + lines[number:]
  compound = text.rstrip().endswith(':')
  return PatchError(
    f'not Python: {decode(error.msg)}',
    where='rule\n' + '\n'.join('    ' + line for line in shown),
    hint='a compound statement needs its body: put `$$body` on the next line, indented'
    if compound
    else 'a rule is complete Python, an expression or whole statements, plus $name and $$name',
  )
