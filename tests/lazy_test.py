"""A package has the names of its folder and its table, and imports nothing before it is named."""

import importlib
import subprocess
import sys

import pytest

import mechjax


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of two modules that also has the name `pi` of another."""
  home = tmp_path / 'some_package'
  home.mkdir()
  (home / '__init__.py').write_text(
    'from mechjax import lazy\n'
    "__getattr__, __dir__ = lazy.package(__name__, {'pi': 'math'})\n"
    'here = 1\n'
  )
  (home / 'one.py').write_text('value = 1\n')
  (home / 'broken.py').write_text('import no_such_library\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield importlib.import_module('some_package')
  for name in [name for name in sys.modules if name.split('.')[0] == 'some_package']:
    del sys.modules[name]


def test_a_module_is_imported_when_it_is_named(package):
  assert 'some_package.one' not in sys.modules
  assert package.one.value == 1
  assert package.pi == importlib.import_module('math').pi


def test_everything_is_listed_without_being_imported(package):
  assert {'one', 'broken', 'pi', 'here'} <= set(dir(package))
  assert 'some_package.one' not in sys.modules


def test_what_is_not_there_is_an_attribute_error_that_names_both(package):
  with pytest.raises(AttributeError, match="module 'some_package' has no attribute 'two'"):
    package.two  # noqa: B018
  assert not hasattr(mechjax, 'sea')


def test_a_module_that_fails_while_it_is_imported_says_why(package):
  with pytest.raises(ModuleNotFoundError, match='no_such_library'):
    package.broken  # noqa: B018


def test_the_front_door_lists_what_it_exports():
  assert set(mechjax.__all__) <= set(dir(mechjax))


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import jax
import mechjax

modules = pkgutil.walk_packages(mechjax.__path__, 'mechjax.', onerror=lambda name: None)
for number, module in enumerate(modules):
  if module.name.endswith('__main__'):
    continue
  try:
    importlib.import_module(module.name)
  except ImportError:
    pass  # a package that is not in this venv
  try:
    jax.config.update('jax_num_cpu_devices', 1 + number % 2)  # an error after JAX has computed
  except RuntimeError as e:
    sys.exit(f'{module.name}: {e}')
"""


def test_no_module_computes_with_jax_while_it_is_imported():
  """Hosts could not join any more, and no process could be forked from one that has imported mechjax."""
  done = subprocess.run([sys.executable, '-c', IMPORT_EVERYTHING], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
