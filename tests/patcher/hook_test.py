"""Patches on import: the module is executed once, with the patch in it, and looks like any other module."""

import importlib
import importlib.metadata
import pkgutil
import sys

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher, Patchers, hook

MODEL = """
  import functools
  REGISTRY = []
  def register(f):
    REGISTRY.append((f.__name__, f(1)))
    return f

  SCALE = 2

  @register
  def f(x, y=SCALE):
    return x * y

  class A:
    size = f(1)
    def g(self):
      return 1
  """


@pytest.fixture(autouse=True)
def _nothing_waits_afterwards():
  yield
  hook._WAITING.clear()


def test_decorators_defaults_and_class_attributes_are_made_from_patched_code(upstream):
  name = upstream.write(MODEL)
  Patcher(name, {'f': ('x * y', 'x * y + 100'), '': ('SCALE = 2', 'SCALE = 3')}).install_on_import()
  model = importlib.import_module(name)
  assert model.REGISTRY == [('f', 103)]
  assert model.A.size == 103


def test_importing_from_another_upstream_module_sees_the_patch(upstream):
  upstream.write('def f():\n  return 1\n', 'hooked_a')
  upstream.write('from hooked_a import f as g\nimport hooked_a\nVALUE = g()\n', 'hooked_b')
  Patcher('hooked_a', f=('1', '2')).install_on_import()
  assert importlib.import_module('hooked_b').VALUE == 2


def test_a_module_in_a_package_and_the_package_itself_are_patched(upstream):
  upstream.write('from hooked_p.m import f\nV = f() + K(0)\n', 'hooked_p.__init__')
  upstream.write('def f():\n  return 1\n', 'hooked_p.m')
  Patcher('hooked_p.m', f=('1', '2')).install_on_import()
  Patcher('hooked_p', {'': ('K', 'abs')}).install_on_import()
  assert importlib.import_module('hooked_p').V == 2


def test_the_module_ends_up_with_its_own_loader_and_spec(upstream):
  name, plain = upstream.write(MODEL), upstream.load('x = 1')
  Patcher(name, {'f': ('x * y', 'x')}).install_on_import()
  model = importlib.import_module(name)
  assert type(model.__loader__) is type(model.__spec__.loader) is type(plain.__loader__)
  assert model.__file__ == model.__spec__.origin == upstream.path(name)
  assert pkgutil.resolve_name(name) is model
  assert set(vars(model)) - {'functools', 'REGISTRY', 'register', 'SCALE', 'f', 'A'} == set(
    vars(plain)
  ) - {'x'}


def test_no_finder_stays_when_nothing_waits(upstream):
  name, before = upstream.write(MODEL), list(sys.meta_path)
  patcher = Patcher(name, {'f': ('x * y', 'x')}).install_on_import()
  assert sys.meta_path != before
  importlib.import_module(name)
  assert sys.meta_path == before
  patcher.uninstall()
  other = Patcher(upstream.write(MODEL), {'f': ('x * y', 'x')}).install_on_import()
  other.uninstall()
  assert sys.meta_path == before


def test_a_module_that_does_not_exist_is_not_waited_for_in_silence():
  with pytest.raises(PatchError, match='no module upstream_that_is_not_there'):
    Patcher('upstream_that_is_not_there', {'f': ('x', 'y')}).install_on_import()


def test_it_is_an_error_when_the_module_is_already_imported(upstream):
  model = upstream.load(MODEL)
  with pytest.raises(PatchError, match=r'already imported(.|\n)*install\(\)'):
    Patcher(model, {'f': ('x * y', 'x')}).install_on_import()


def test_bodies_of_functions_are_unpatched_later(upstream):
  name = upstream.write(MODEL)
  patcher = Patcher(name, {'A.g': ('1', '2')}).install_on_import()
  model = importlib.import_module(name)
  a = model.A()
  assert a.g() == 2
  assert patcher.installed
  patcher.uninstall()
  assert a.g() == 1
  assert not patcher.installed


def test_what_was_executed_patched_cannot_be_taken_back(upstream):
  name = upstream.write(MODEL)
  patcher = Patcher(name, {'A': ('size = f(1)', 'size = 7')}).install_on_import()
  model = importlib.import_module(name)
  with pytest.raises(PatchError, match='while the module or a class is defined'):
    patcher.uninstall()
  assert model.A.size == 7


def test_installing_in_place_and_on_import_count_together(upstream):
  name = upstream.write(MODEL)
  patcher = Patcher(name, {'A.g': ('1', '2')})
  patcher.install_on_import().install_on_import().install()
  model = importlib.import_module(name)
  for _ in range(2):
    patcher.uninstall()
    assert model.A().g() == 2
  patcher.uninstall()
  assert model.A().g() == 1
  with pytest.raises(PatchError, match='not installed'):
    patcher.uninstall()


def test_patchers_of_one_module_compose(upstream):
  name = upstream.write(MODEL)
  first = Patcher(name, {'A.g': ('return 1', 'y = 1\nreturn y')}).install_on_import()
  second = Patcher(name, {'A.g': ('return y', 'return y + 1')}).install_on_import()
  model = importlib.import_module(name)
  assert model.A().g() == 2
  with pytest.raises(PatchError, match='uninstalled before the others'):
    first.uninstall()
  second.uninstall()
  assert model.A().g() == 1
  first.uninstall()


def test_names_are_there_while_the_module_runs(upstream):
  name = upstream.write(MODEL)
  Patcher(
    name, {'f': ('x * y', 'double(x)')}, names={'double': lambda x: 2 * x}
  ).install_on_import()
  assert importlib.import_module(name).REGISTRY == [('f', 2)]


def test_a_name_that_upstream_binds_to_something_else_fails_the_import(upstream):
  name = upstream.write(MODEL)
  Patcher(name, {'f': ('x * y', 'SCALE')}, names={'SCALE': 5}).install_on_import()
  with pytest.raises(PatchError, match="'SCALE' already refers to"):
    importlib.import_module(name)
  assert name not in sys.modules


def test_a_rule_that_does_not_match_fails_the_import_and_not_silently(upstream):
  name = upstream.write(MODEL)
  Patcher(name, {'f': ('x / y', 'x')}).install_on_import()
  with pytest.raises(PatchError, match='does not match'):
    importlib.import_module(name)


def test_no_bytecode_of_the_patched_module_is_cached(upstream):
  name = upstream.write('def f():\n  return 1\n')
  Patcher(name, f=('1', '2')).install_on_import()
  importlib.import_module(name)
  del sys.modules[name]
  assert importlib.import_module(name).f() == 1


def test_a_package_of_patches_waits_for_each_of_its_modules(upstream):
  a, b = upstream.write('def f():\n  return 1\n'), upstream.write('def f():\n  return 1\n')
  patchers = Patchers(Patcher(a, f=('1', '2')), Patcher(b, f=('1', '3')))
  patchers.install_on_import()
  assert (importlib.import_module(a).f(), importlib.import_module(b).f()) == (2, 3)
  patchers.uninstall()
  assert (importlib.import_module(a).f(), importlib.import_module(b).f()) == (1, 1)
