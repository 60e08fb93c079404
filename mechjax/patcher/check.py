"""Checks whether the shipped patches still apply to the installed upstream packages.

Upstream packages change without notice. `python -m mechjax.patcher check` answers in seconds, on any
machine, because it reads upstream's files and imports none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mechjax.errors import PatchError, unknown
from mechjax.patcher import composing, drift, rewriting, sources
from mechjax.patcher.patcher import Patcher, Patchers

PACKAGES = ('mechjax.patches', 'patches')


@dataclass(frozen=True)
class Row:
  """Result of trying one patch.

  Attributes:
    upstream: the distribution, or the package if the patch does not state a distribution.
    version: the installed version; '' if it is not installed.
    patch: the file of the patch, or its name in that file, and the module that it patches.
    matched, total: number of rules that match, and number of all rules.
    errors: reasons why the others do not match.
    absent: reason why there is nothing to patch: 'not installed', or 'no such module' in an installed version with
      which the patch was not checked; '' if upstream is there.
  """

  upstream: str
  version: str
  patch: str
  matched: int
  total: int
  errors: tuple[PatchError, ...] = ()
  absent: str = ''

  @property
  def status(self) -> str:
    return self.absent or ('does not apply' if self.errors else 'ok')


def find_shipped(names: Iterable[str] = ()) -> Iterator[tuple[str, Patcher]]:
  """Yields the shipped patches as (file, patch) pairs.

  A patch that is not part of its file's `PATCHER`, since only some users need it, is listed under its
  own name: ('transformers_flax.LLAMA_CORRECTIONS', …).

  Args:
    names: files of patches or upstream modules; empty for all.

  Raises:
    PatchError: if a name is neither a file nor a module, or there are no patches at all.
  """
  wanted, every = set(names), list(_find_all())
  known = {name for file, p in every for name in _names(file, p)}
  for name in sorted(wanted - known):
    raise unknown(PatchError, 'shipped patch', name, sorted(known))
  for file, patcher in every:
    if not wanted or wanted & _names(file, patcher):
      yield file, patcher


def _names(file: str, patcher: Patcher) -> set[str]:
  return {file, file.partition('.')[0], patcher.module}


def _find_all() -> Iterator[tuple[str, Patcher]]:
  for package in PACKAGES:
    if importlib.util.find_spec(package) is not None:
      break
  else:
    raise PatchError(f'no patches found: neither of {", ".join(PACKAGES)} is importable')
  for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
    found = vars(importlib.import_module(f'{package}.{info.name}'))
    together = Patchers(*(v for k, v in found.items() if k == 'PATCHER')).patchers
    yield from ((info.name, one) for one in together)
    for name, value in found.items():
      for one in Patchers(value).patchers if isinstance(value, Patcher | Patchers) else ():
        if one not in together:
          yield f'{info.name}.{name}', one


def check(file: str, patcher: Patcher) -> Row:
  """Tries every rule of a patch on upstream's source; a rule that fails is skipped for the later ones."""
  upstream = patcher.checked[0] if patcher.checked else patcher.module.partition('.')[0]
  version = sources.version(upstream) or ''
  patch, total = f'{file}: {patcher.module}', len(patcher.rules)
  source = sources.locate(patcher.module)
  if source is None and not version:
    return Row(upstream, '', patch, 0, total, absent='not installed')
  if source is None and version not in (patcher.checked or ('', ()))[1]:
    return Row(upstream, version, patch, 0, total, absent='no such module')
  if source is None:
    missing = PatchError(f'{upstream} {version} has no module {patcher.module}')
    return Row(upstream, version, patch, 0, total, (missing,))
  tree, errors = source.parse(), []
  for member, rule in patcher.rules:
    try:
      rewriting.apply(source, tree, member, rule)
    except PatchError as error:
      errors.append(drift.explain(error, source, tree, member, rule, patcher.checked))
  if not errors:
    errors += _try_composing(patcher)
  return Row(upstream, version, patch, total - len(errors), total, tuple(errors))


def _try_composing(patcher: Patcher) -> list[PatchError]:
  """Compiles the patched module, to find errors that only show then."""
  try:
    composing.compose(patcher.read_source(), [patcher])
  except PatchError as error:
    return [error]
  return []


def table(rows: list[Row]) -> str:
  """Formats rows as an aligned table."""
  cells = [('upstream', 'version', 'patch', 'matches', 'status')]
  cells += [
    (r.upstream, r.version or '-', r.patch, f'{r.matched}/{r.total}', r.status) for r in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells)]
  return '\n'.join(
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells
  )
