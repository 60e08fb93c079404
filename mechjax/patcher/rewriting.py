"""Applying rules to a syntax tree.

Rules are applied in order, each to the result of the earlier ones, so patches compose. A rule must
match as often as it states: a patch that silently stopped matching leads to a wrong result in a
paper.

Every node that a rule brings in is marked `ours` and takes the position of the code that it
replaces; everything else, including the code held by holes, stays upstream's own and keeps its
position. A part of the replacement that repeats the matched code is treated as the matched code. So a
traceback through patched code names upstream's lines, and the rendered text (`rendering`) keeps
upstream's comments.

The root of each replacement records in `stands_for` which part of the source text it replaced: a
span of bytes for an expression, a shared `ReplacedSpan` for statements.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechjax.errors import MatchError, PatchError
from mechjax.patcher import matching, patterns
from mechjax.patcher.matching import Match, Parameter
from mechjax.patcher.patterns import Rule
from mechjax.patcher.sources import UpstreamSource, members


@dataclass(eq=False)
class ReplacedSpan:
  """The part of the source text, in bytes, that a run of new statements replaced."""

  start: int
  stop: int


@dataclass(frozen=True)
class Applied:
  """A rule and where it matched.

  Attributes:
    member: the member it was for.
    rule: the rule.
    lines: the first line of each match, in upstream's file.
    bindings: the code that each hole held, as text, for each match.
  """

  member: str
  rule: Rule
  lines: tuple[int, ...]
  bindings: tuple[dict[str, str], ...]


def find(source: UpstreamSource, tree: ast.Module, member: str, rule: Rule) -> list[Match]:
  """Finds every place in a member where a rule matches, in source order."""
  if not member:
    return matching.find_outside_functions(rule.pattern, tree.body)
  return matching.find(rule.pattern, members(source, tree, member))


def apply(source: UpstreamSource, tree: ast.Module, member: str, rule: Rule) -> Applied:
  """Applies one rule, changing `tree`.

  Returns:
    The rule and the places where it matched.

  Raises:
    PatchError: if there is no such member.
    MatchError: if the rule matches another number of times than it states, or at places that overlap;
      in that case nothing is changed.
  """
  matches = find(source, tree, member, rule)
  expected = max(1, len(matches)) if rule.count == 'all' else rule.count
  if len(matches) != expected:
    raise _wrong_count(source, member, rule, matches)
  overlap = _find_overlap(matches)
  if overlap:
    raise MatchError(
      f'matches of {rule.before!r} overlap, so they cannot all be replaced',
      where=f'{member or "module level"}, {source.filename}:{overlap[0]} and {overlap[1]}',
      hint='write more of the surrounding code into the rule',
      matches=len(matches),
    )
  texts = tuple({k: _text(v) for k, v in m.bindings.items()} for m in matches)
  for match in reversed(matches):
    _replace(source, match, rule.template)
  return Applied(member, rule, tuple(m.nodes[0].lineno for m in matches), texts)


def _wrong_count(
  source: UpstreamSource, member: str, rule: Rule, matches: list[Match]
) -> MatchError:
  where = ', '.join(f'{source.filename}:{m.nodes[0].lineno}' for m in matches)
  outcome = f'matches {len(matches)} times, not {rule.count},' if matches else 'does not match'
  hint = (
    f"write more of the surrounding code into the rule, or state {len(matches)} or 'all' as count"
  )
  return MatchError(
    f'{rule.before!r} {outcome} in {member or "the statements of the module"}',
    where=where or source.filename,
    hint=hint if matches else None,
    matches=len(matches),
  )


def _find_overlap(matches: list[Match]) -> tuple[int, int] | None:
  seen: dict[int, int] = {}
  for match in matches:
    for node in match.nodes:
      for part in ast.walk(node):
        if isinstance(part, ast.expr | ast.stmt) and id(part) in seen:
          return seen[id(part)], match.nodes[0].lineno
        seen[id(part)] = match.nodes[0].lineno
  return None


def _replace(source: UpstreamSource, match: Match, template: Any) -> None:
  statements = isinstance(template, list)
  fill = _Filling(match)
  new = [*fill(template)] if statements else [fill(template)]
  if statements and not new:
    new = [fill.mark(ast.Pass())]
  if statements:
    _join_runs(source, match, new)
  else:
    old = match.nodes[0]
    stands_for = getattr(old, 'stands_for', None)
    if stands_for is None and not is_ours(old):
      stands_for = source.span(old)
    new[0].stands_for = stands_for
  match.put(new)


def _join_runs(source: UpstreamSource, match: Match, new: list) -> None:
  """Merges the new statements and every earlier run that the match touches into one run."""
  old_runs = [
    n.stands_for for n in match.nodes if isinstance(getattr(n, 'stands_for', None), ReplacedSpan)
  ]
  own = [source.span(n) for n in match.nodes if not hasattr(n, 'stands_for') and not is_ours(n)]
  spans = own + [(r.start, r.stop) for r in old_runs]
  if not spans:
    return
  run = ReplacedSpan(min(s for s, _ in spans), max(e for _, e in spans))
  for node in [*new, *(n for n in match.holder if getattr(n, 'stands_for', None) in old_runs)]:
    node.stands_for = run


def is_ours(node: Any) -> bool:
  """Whether this node comes from a rule and not from upstream."""
  return getattr(node, 'ours', False)


class _Filling:
  """Fills the holes of a template with the code that a match bound."""

  def __init__(self, match: Match):
    self.match = match
    self.unused = list(match.nodes)

  def __call__(self, value: Any) -> Any:
    hole = patterns.one(value)
    if isinstance(value, list):
      return self.fill_sequence(value)
    if isinstance(value, ast.Name) and hole:
      return self.fill_expression('$' + hole, value.ctx)
    if isinstance(value, str):
      return self.fill_identifier('$' + hole) if hole else value
    return self.fill_node(value) if isinstance(value, ast.AST) else value

  def fill_sequence(self, items: Sequence) -> list:
    out: list = []
    for item in items:
      hole = patterns.many(item)
      out += [_copy(n) for n in self.match.bindings['$$' + hole]] if hole else [self(item)]
    return out

  def fill_expression(self, hole: str, ctx: ast.expr_context) -> ast.expr:
    bound = _copy(self.match.bindings[hole])
    if isinstance(bound, str):
      return self.mark(ast.Name(bound, ctx))
    _set_context(bound, ctx)
    return bound

  def fill_identifier(self, hole: str) -> str:
    bound = self.match.bindings[hole]
    if isinstance(bound, ast.Name):
      return bound.id
    if isinstance(bound, str):
      return bound
    raise PatchError(
      f'{hole} holds {_text(bound)!r}, and the replacement uses it where only a name is allowed'
    )

  def fill_node(self, template: ast.AST) -> ast.AST:
    new = self.mark(self.fill_fields(template))
    for old in self.unused:
      if type(old) is type(new) and matching.equal(old, new):
        self.unused.remove(old)
        return _copy(old)
    return new

  def fill_fields(self, t: Any) -> ast.AST:
    if isinstance(t, Parameter):
      return Parameter(t.role, self(t.arg), self(t.default))
    if isinstance(t, ast.arguments):
      return _arguments(self.fill_sequence(matching.parameters(t)))
    new: Any = copy.copy(t)
    first = {ast.Call: 'args', ast.ClassDef: 'bases'}.get(type(t))
    for name, value in ast.iter_fields(t):
      if not (first and name in (first, 'keywords')):
        setattr(new, name, self(value))
    if first:
      both = self.fill_sequence(matching.arguments(getattr(t, first), t.keywords))
      setattr(new, first, [a for a in both if not isinstance(a, ast.keyword)])
      new.keywords = [a for a in both if isinstance(a, ast.keyword)]
    return new

  def mark(self, node: Any) -> Any:
    """Marks a new node and gives it the position of the match."""
    node.ours = True
    return node if isinstance(node, Parameter) else ast.copy_location(node, self.match.nodes[0])


def _copy(node: Any) -> Any:
  """Copies matched code, for use elsewhere."""
  new = copy.deepcopy(node)
  if hasattr(new, 'stands_for'):
    del new.stands_for
  return new


def _set_context(node: ast.expr, ctx: ast.expr_context) -> None:
  if hasattr(node, 'ctx'):
    node.ctx = ctx
  if isinstance(node, ast.Tuple | ast.List):
    for item in node.elts:
      _set_context(item, ctx)
  elif isinstance(node, ast.Starred):
    _set_context(node.value, ctx)


def _arguments(parameters: list[Parameter]) -> ast.arguments:

  def role(name: str) -> list[Parameter]:
    return [p for p in parameters if p.role == name]

  plain = role('positional') + role('plain')
  star, double = role('star'), role('double star')
  defaults: list[Any] = [p.default for p in plain]
  first = next((i for i, default in enumerate(defaults) if default is not None), len(defaults))
  if None in defaults[first:]:
    raise PatchError('the replacement has a parameter without a default after one with a default')
  return ast.arguments(
    posonlyargs=[p.arg for p in role('positional')],
    args=[p.arg for p in role('plain')],
    defaults=defaults[first:],
    vararg=star[0].arg if star else None,
    kwonlyargs=[p.arg for p in role('keyword')],
    kw_defaults=[p.default for p in role('keyword')],
    kwarg=double[0].arg if double else None,
  )


def _text(value: Any) -> str:
  if isinstance(value, list):
    statements = bool(value) and isinstance(value[0], ast.stmt)
    return ('\n' if statements else ', ').join(map(_text, value))
  if isinstance(value, Parameter):
    return value.arg.arg
  return value if isinstance(value, str) else ast.unparse(value)
