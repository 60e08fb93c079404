"""Small upstream packages, written for one test and removed after it."""

import importlib
import itertools
import linecache
import sys
import textwrap

import pytest

_NUMBERS = itertools.count()


class Upstream:
  """Writes modules where the import system finds them."""

  def __init__(self, folder):
    self.folder = folder
    self.names = []

  def write(self, text, name=None):
    """Writes a module; returns its name."""
    name = name or f'upstream_{next(_NUMBERS)}'
    path = self.folder.joinpath(*name.split('.')).with_suffix('.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip('\n'), encoding='utf-8')
    self.names.append(name)
    importlib.invalidate_caches()
    return name

  def load(self, text, name=None):
    """Writes a module and imports it."""
    return importlib.import_module(self.write(text, name))

  def path(self, name):
    return str(self.folder.joinpath(*name.split('.')).with_suffix('.py'))


@pytest.fixture
def upstream(tmp_path, monkeypatch):
  finders = list(sys.meta_path)
  before = set(sys.modules)
  monkeypatch.syspath_prepend(tmp_path)
  made = Upstream(tmp_path)
  yield made
  for name in set(sys.modules) - before:
    if name.partition('.')[0] in {n.partition('.')[0] for n in made.names}:
      del sys.modules[name]
  sys.meta_path[:] = finders
  linecache.clearcache()
