"""Modules that are imported late, executed again or changed since: each is patched as it is, or it is refused."""

import contextlib
import functools
import importlib
import sys

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher


def test_a_file_changed_after_it_was_imported_is_refused(upstream):
  model = upstream.load('def f(x):\n  return x + 1\n')
  upstream.write('def f(x):\n  y = x + 1\n  return y\n', model.__name__)
  with pytest.raises(PatchError, match='changed after it was imported'):
    Patcher(model, {'f': ('x + 1', 'x + 2')}).install()


def test_a_branch_that_was_never_executed_is_refused(upstream):
  model = upstream.load('if True:\n  def f(): return 1\nelse:\n  def f(): return 2\n')
  with pytest.raises(PatchError, match='is not the code that runs'):
    Patcher(model, {'f': ('2', '3')}).install()
  with Patcher(model, {'f': ('1', '3')}):
    assert model.f() == 3


def test_a_module_that_was_executed_again_is_patched_again(upstream):
  model = upstream.load('def f(x):\n  return x + 1\n')
  patch = Patcher(model, {'f': ('x + 1', 'tag(x) + 2')}, names={'tag': lambda x: x})
  patch.install()
  before = model.f
  importlib.reload(model)
  assert not patch.installed
  assert (before(0), model.f(0), hasattr(model, 'tag')) == (1, 1, False)
  with patch:
    assert model.f(0) == 2
  assert (model.f(0), hasattr(model, 'tag')) == (1, False)


def test_a_reload_takes_up_a_source_that_changed(upstream):
  model = upstream.load('def f(x):\n  return x + 1\n')
  patch = Patcher(model, {'f': ('x + 1', 'x + 2')})
  with patch:
    pass
  upstream.write(
    '# a longer file\n\ndef g():\n  return 0\n\ndef f(x):\n  return x + 1\n', model.__name__
  )
  importlib.reload(model)
  with patch:
    assert model.f(0) == 2
  assert model.f(0) == 1


def test_a_reload_while_a_patch_is_installed_is_told_at_the_end_and_leaves_nothing(upstream):
  model = upstream.load('def f(x):\n  return x + 1\n')
  patch = Patcher(model, {'f': ('x + 1', 'x + 2')})
  with pytest.raises(PatchError, match='not installed'), patch:
    importlib.reload(model)
  with patch:
    assert model.f(0) == 2
  assert model.f(0) == 1


@pytest.mark.parametrize('installed', [False, True])
def test_a_name_that_leads_to_a_function_from_elsewhere_is_refused(upstream, installed):
  model = upstream.load('def f(x):\n  return x + 1\n')
  patch, f = Patcher(model, {'f': ('x + 1', 'x + 2')}), model.f
  with patch if installed else contextlib.nullcontext():
    model.f = lambda x: -1
    with pytest.raises(PatchError, match='is not the code that runs'):
      patch.install()
  assert (f(0), model.f(0), patch.installed) == (1, -1, False)


def test_a_function_that_another_tool_wrapped_is_patched_within(upstream):
  model = upstream.load('def f(x):\n  return x + 1\n')
  original = model.f
  model.f = functools.wraps(original)(lambda x: 10 * original(x))
  with Patcher(model, {'f': ('x + 1', 'x + 2')}):
    assert model.f(0) == 20
  assert model.f(0) == 10


def test_a_module_not_yet_imported_is_imported_and_patched(upstream):
  name = upstream.write('def f():\n  return 1\n')
  patcher = Patcher(name, f=('1', '2'))
  assert name not in sys.modules
  with patcher:
    assert importlib.import_module(name).f() == 2
  assert importlib.import_module(name).f() == 1
