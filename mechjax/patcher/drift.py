"""Error messages for rules that no longer match, because upstream has changed.

This is how patches usually break. The reader of the message did not write the patch, so the message
does the search: it shows the code in the same member that is most similar to the pattern, as a diff
with file and line; other members in which the pattern does match; and the installed version next to
the versions that the patch was checked with.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterator
from typing import Any

from mechjax.errors import MatchError, PatchError
from mechjax.patcher import matching, patterns, sources
from mechjax.patcher.patterns import Rule
from mechjax.patcher.sources import UpstreamSource

Checked = tuple[str, tuple[str, ...]]
_CONTEXT = 12


def explain(
  error: PatchError,
  source: UpstreamSource,
  tree: ast.Module,
  member: str,
  rule: Rule,
  checked: Checked | None,
) -> PatchError:
  """Adds the nearest code, the versions and a hint to an error about a rule.

  Args:
    error: the error to extend.
    source, tree: upstream's code, as the rule found it.
    member: the member that the rule is for.
    rule: the rule.
    checked: the distribution and the versions of it that the patch was checked with.

  Returns:
    An error of the same class.
  """
  where, cause, hint = error.where, error.cause, error.hint
  if isinstance(error, MatchError) and error.matches == 0:
    near = _find_nearest(source, tree, member, rule)
    where = (
      f'{source.filename}:{near[0]}, the nearest code:\n{near[1]}' if near else source.filename
    )
    cause = cause or 'upstream changed this code'
    elsewhere = _find_elsewhere(source, tree, member, rule)
    hint = hint or 'change the rule to match the present code of upstream'
    hint = f'{hint}; unchanged, it matches in {", ".join(elsewhere)}' if elsewhere else hint
  if checked:
    cause = f'{cause or "upstream changed this code"}; {versions(checked)}'
  what = f'{source.module}: {error.what}'
  new = type(error)(what, where=where, cause=cause, hint=hint)
  if isinstance(error, MatchError) and isinstance(new, MatchError):
    new.matches = error.matches
  return new


def versions(checked: Checked) -> str:
  """States the installed version of a distribution and the versions that a patch was checked with."""
  name, known = checked
  return f'{name} {sources.version(name) or "(not installed)"}, checked with {", ".join(known)}'


def no_module(name: str, checked: Checked | None) -> PatchError:
  """The error for a module that does not exist; the name may be that of a member of a module."""
  cause, hint = versions(checked) if checked else None, 'install the upstream package'
  holder, _, last = name.rpartition('.')
  while holder and sources.locate(holder) is None:
    holder, _, last = holder.rpartition('.')
  if not holder:
    return PatchError(f'there is no module {name}', cause=cause, hint=hint)
  thing = getattr(sys.modules.get(holder), last, None)
  home = getattr(thing, '__module__', None)
  if not isinstance(home, str):
    where = f'{holder} exists, but {last} is not in it'
    return PatchError(f'there is no module {name}', where=where, cause=cause)
  member = getattr(thing, '__qualname__', last) + name.removeprefix(f'{holder}.{last}')
  return PatchError(
    f'{name} is not a module: {last} is defined in the module {home}',
    cause=cause,
    hint=f'the module is the first argument and its members are the second: Patcher({home!r}, {{{member!r}: …}})',
  )


def _find_nearest(
  source: UpstreamSource, tree: ast.Module, member: str, rule: Rule
) -> tuple[int, str] | None:
  wanted = _unparse(rule.pattern)
  matcher = difflib.SequenceMatcher(None, autojunk=False)
  matcher.set_seq2(wanted)
  best, score = None, 0.0
  for nodes in _candidates(source, tree, member, rule.pattern):
    matcher.set_seq1(_unparse(nodes))
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    if all(bound() > score for bound in bounds):
      best, score = nodes, matcher.ratio()
  if best is None:
    return None
  found = _unparse(best)
  lines = difflib.unified_diff(
    wanted.split('\n'), found.split('\n'), 'the rule', 'upstream', lineterm='', n=_CONTEXT
  )
  first = best[0] if isinstance(best, list) else best
  return first.lineno, '\n'.join('    ' + line for line in lines)


def _unparse(code: Any) -> str:
  nodes = code if isinstance(code, list) else [code]
  return patterns.decode('\n'.join(ast.unparse(node) for node in nodes))


def _candidates(
  source: UpstreamSource, tree: ast.Module, member: str, pattern: Any
) -> Iterator[Any]:
  roots = [block[i] for block, i in sources.members(source, tree, member)] if member else tree.body
  if isinstance(pattern, list) and len(pattern) == 1:
    yield from ([root] for root in roots)
  for node in (n for root in roots for n in ast.walk(root)):
    if isinstance(pattern, list):
      for name in ('body', 'orelse', 'finalbody'):
        block = getattr(node, name, None)
        if isinstance(block, list):
          yield from (block[i : i + len(pattern)] for i in range(len(block)))
    elif type(node) is type(pattern) and matching.is_read(node):
      yield node


def _find_elsewhere(source: UpstreamSource, tree: ast.Module, member: str, rule: Rule) -> list[str]:
  names = [
    name for name, (block, i) in sources.definitions(tree) if isinstance(block[i], sources.FUNCTION)
  ]
  found = [
    name
    for name in dict.fromkeys(names)
    if name != member and matching.find(rule.pattern, sources.members(source, tree, name))
  ]
  return [repr(name) for name in found[:5]]
