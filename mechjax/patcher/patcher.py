"""`Patcher` and `Patchers`: declarations of a patch file, which a user installs.

    QWEN2 = Patcher(
      'tunix.models.qwen2.model',
      {'DecoderLayer.block': [('attn_output += x', 'attn_output += tag(x)')]},
      checked=('google-tunix', ['0.1.7']),
      names={'tag': tag},
    )
    with QWEN2: …                  # a notebook
    QWEN2.install()                # a program
    QWEN2.install_on_import()      # a program, before upstream is imported

Making a patcher imports nothing and changes nothing. The two modes compared:

                                      in place (`with`, `install`)    on import
    bodies of functions and lambdas   yes                             yes
    module-level assignments,         yes, but an earlier             yes
    imports, new definitions          `from x import NAME` is stale
    decorators, defaults,             no: an error                    yes
    parameters, class attributes
    identity, isinstance, pickles     as before                       one identity from the start
    subclasses, aliases, methods      see the patch                   see the patch
    decorators, registrations         not run again                   run once
    uninstall                         the very same code objects      bodies of functions only

In both modes module globals stay live, and future imports, `super()`, name mangling and closures
are as in upstream. Calls that are running in other threads finish in the code in which they began.

A process started by multiprocessing's spawn begins unpatched: give it
`initializer=PATCHER.install`. A patch that is installed twice is applied once and counted; the last
`uninstall` removes it. Two patchers are the same patch when module and rules are equal, whichever
file they come from.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from mechjax.errors import PatchError
from mechjax.patcher import composing, drift, hook, live, patterns, rendering, sources
from mechjax.patcher.patterns import Rule
from mechjax.patcher.sources import UpstreamSource


class Text(str):
  """A string that a notebook shows without quotes and escapes."""

  __slots__ = ()

  def __repr__(self) -> str:
    return str(self)


class Patcher:
  """Replacements in the source of one upstream module.

  Attributes:
    module: the dotted name of the module.
    rules: (member, rule) pairs, in the order in which they are applied.
    checked: the distribution and its versions with which the patch was checked; None if unstated.
    names: values that the replacements may use besides those of the module, by name.
  """

  def __init__(
    self,
    module: str | ModuleType,
    members: Mapping[str, Iterable] | None = None,
    /,
    *,
    checked: tuple[str, Iterable[str]] | None = None,
    names: Mapping[str, Any] | None = None,
    **more_members: Iterable,
  ):
    """Parses the rules of a patch.

    Args:
      module: the module or its dotted name; it is not imported.
      members: for each member ('Block.__call__', 'rope', '' for the module's own statements) its
        rules: (before, after) or (before, after, count) tuples, or a flat before, after, …
      checked: distribution and versions, such as ('google-tunix', ['0.1.7']).
      names: names that replacements may use; put into the module while the patch is installed.
      **more_members: members whose names are plain identifiers.

    Raises:
      PatchError: if a rule cannot be parsed.
    """
    self.module = module if isinstance(module, str) else module.__name__
    every = {**(members or {}), **more_members}
    self.rules: tuple[tuple[str, Rule], ...] = tuple(
      (member, rule) for member, entries in every.items() for rule in patterns.read_rules(entries)
    )
    self.checked = (checked[0], tuple(checked[1])) if checked else None
    self.names = dict(names or {})

  def install(self) -> Patcher:
    """Patches the module in place, after importing it if necessary.

    Raises:
      PatchError: if there is no such module, or if a rule does not apply or cannot be applied in
        place; in that case nothing is changed.
    """
    module = self._import()
    with live.LOCK:
      live.get_record(module).install(self, live.Running([module]))
    return self

  def _import(self) -> ModuleType:
    try:
      return importlib.import_module(self.module)
    except ModuleNotFoundError as error:
      if not f'{self.module}.'.startswith(f'{error.name}.'):
        raise
      raise self._no_module() from error

  def uninstall(self) -> None:
    """Reverts one `install` or `install_on_import`; the last one restores the module.

    Raises:
      PatchError: if the patch is not installed, or another one builds on it.
    """
    with live.LOCK:
      self._uninstall(live.Running(_find_loaded([self])))

  def _uninstall(self, running: live.Running) -> None:
    if hook.count_requests(self.module, self):
      hook.forget(self.module, self)
    elif live.count_installs(self.module, self):
      live.get_record(sys.modules[self.module]).uninstall(self, running)
    else:
      raise PatchError(
        f'the patch of {self.module} is not installed, so it cannot be uninstalled',
        cause='it was never installed, or the module was executed again since (importlib.reload, '
        '%autoreload), which restored its unpatched code',
        hint='install the patch again after a reload',
      )

  def install_on_import(self) -> Patcher:
    """Arranges for the module to run patched code from its import on.

    Raises:
      PatchError: if there is no such module, or it is imported already.
    """
    with live.LOCK:
      if self.module in sys.modules:
        raise PatchError(
          f'{self.module} is already imported, so it is too late for install_on_import()',
          hint='call it before anything imports the module, or call install(): it patches in place',
        )
      self.read_source()
      hook.request(self.module, self)
    return self

  def __enter__(self) -> Patcher:
    return self.install()

  def __exit__(self, *exc) -> None:
    self.uninstall()

  @property
  def installed(self) -> bool:
    """Whether the module runs patched code now."""
    return live.count_installs(self.module, self) > 0

  def read_source(self) -> UpstreamSource:
    """Reads upstream's source without importing it.

    Raises:
      PatchError: if there is no such module.
    """
    source = sources.locate(self.module)
    if source is None:
      raise self._no_module()
    return source

  def _no_module(self) -> PatchError:
    return drift.no_module(self.module, self.checked)

  def diff(self) -> Text:
    """Shows the patch as a unified diff of upstream's file, before and after."""
    source = self.read_source()
    tree, _ = composing.rewrite(source, [self])
    before, after = (
      t.splitlines(keepends=True) for t in (source.text, rendering.render_readable(source, tree))
    )
    name = self.module.replace('.', '/') + '.py'
    return Text(''.join(difflib.unified_diff(before, after, f'a/{name}', f'b/{name}')))

  def explain(self) -> Text:
    """Shows for each rule file and line, the code before and after, and the holes."""
    source = self.read_source()
    _, applied = composing.rewrite(source, [self])
    out = [f'{self.module}  {source.filename}']
    for one in applied:
      for line, bindings in zip(one.lines, one.bindings):
        out.append(f'{one.member or "module level"}, line {line}:')
        out += [f'  - {row}' for row in _rows(one.rule.before)]
        out += [f'  + {row}' for row in _rows(one.rule.after)]
        out += [f'    {hole} = {text}' for hole, text in bindings.items()]
    return Text('\n'.join(out))

  def _key(self) -> tuple:
    return self.module, self.rules

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Patcher) and self._key() == other._key()

  def __hash__(self) -> int:
    return hash(self._key())

  def __repr__(self) -> str:
    return f'<Patcher of {self.module}, {len(self.rules)} rules>'

  def __reduce__(self):
    names = {
      k: _Module(v.__name__) if isinstance(v, ModuleType) else v for k, v in self.names.items()
    }
    return _rebuild, (self.module, self.rules, self.checked, names)


def _rows(code: str) -> list[str]:
  return textwrap.dedent(code).strip('\n').rstrip().split('\n')


def _find_loaded(patchers: Iterable[Patcher]) -> list[ModuleType]:
  return [sys.modules[p.module] for p in patchers if p.module in sys.modules]


class _Module(str):
  """The name of a module, pickled in place of the module."""

  __slots__ = ()


def _rebuild(module: str, rules: tuple, checked: Any, names: dict) -> Patcher:
  found = {k: importlib.import_module(v) if isinstance(v, _Module) else v for k, v in names.items()}
  patcher = Patcher(module, checked=checked, names=found)
  patcher.rules = rules
  return patcher


class Patchers:
  """The patches of one upstream package, each for a module of it, used as one.

  A module that the installed version of the package lacks is skipped, unless it lacks all of them.

  Attributes:
    patchers: the patches.
  """

  def __init__(self, *patchers: Patcher | Patchers):
    self.patchers: tuple[Patcher, ...] = tuple(
      p for one in patchers for p in (one.patchers if isinstance(one, Patchers) else (one,))
    )
    self._installed: list[list[Patcher]] = []

  def install(self) -> Patchers:
    """Installs each patch whose module exists; all of them or none."""
    present = self._find_present()
    modules = {p.module: p._import() for p in present}
    running = live.Running(modules.values())
    return self._install_each(
      present, lambda p: live.get_record(modules[p.module]).install(p, running)
    )

  def install_on_import(self) -> Patchers:
    """Arranges for each module that exists to be patched when it is imported."""
    return self._install_each(self._find_present(), Patcher.install_on_import)

  def _find_present(self) -> list[Patcher]:
    present = [p for p in self.patchers if sources.locate(p.module) is not None]
    if not present:
      self.patchers[0].read_source()
    return present

  def _install_each(self, present: list[Patcher], install: Callable[[Patcher], object]) -> Patchers:
    with live.LOCK, contextlib.ExitStack() as undo:
      for patcher in present:
        install(patcher)
        undo.callback(patcher.uninstall)
      undo.pop_all()
      self._installed.append(present)
    return self

  def uninstall(self) -> None:
    """Reverts the last `install` or `install_on_import`."""
    with live.LOCK:
      if not self._installed:
        raise PatchError('these patches are not installed, so they cannot be uninstalled')
      patchers = self._installed.pop()
      running = live.Running(_find_loaded(patchers))
      with contextlib.ExitStack() as each:  # in reverse order, and the rest after an error too
        for patcher in patchers:
          each.callback(patcher._uninstall, running)

  def __enter__(self) -> Patchers:
    return self.install()

  def __exit__(self, *exc) -> None:
    self.uninstall()

  def diff(self) -> Text:
    """Shows the patches as unified diffs of upstream's files."""
    return Text(''.join(p.diff() for p in self.patchers if sources.locate(p.module)))

  def explain(self) -> Text:
    """Shows each rule of each patch, as `Patcher.explain`."""
    return Text('\n\n'.join(p.explain() for p in self.patchers if sources.locate(p.module)))

  def __repr__(self) -> str:
    return f'<Patchers of {", ".join(p.module for p in self.patchers)}>'

  def __reduce__(self):
    return Patchers, self.patchers
