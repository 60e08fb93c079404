"""The wheel has all packages, and a patch is one module under both of its names."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_every_package_is_listed_for_the_wheel():
  listed = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['packages']
  found = ['.'.join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob('mechjax/**/__init__.py')]
  assert sorted(listed) == sorted([*found, 'mechjax.patches'])


def test_type_checkers_are_told_that_the_package_has_types():
  shipped = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools'][
    'package-data'
  ]
  assert 'py.typed' in shipped['mechjax']
  assert (ROOT / 'mechjax/py.typed').exists()


def test_the_checks_before_a_commit_are_those_of_make_lint():
  lint = re.search(r'^lint:[^\n]*\n((?:\t.*\n)+)', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  commands = [line.strip().replace('$(BIN)', '.venv/bin') for line in lint[1].splitlines()]
  hooks = (ROOT / '.pre-commit-config.yaml').read_text()
  assert re.findall(r'entry: (.*)', hooks) == commands
  assert re.findall(r'repo: (.*)', hooks) == ['local']


def test_the_hosted_checks_run_on_every_python_that_is_promised():
  workflow = (ROOT / '.github/workflows/ci.yml').read_text()
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  promised = re.findall(r'Python :: (3\.\d+)', '\n'.join(project['classifiers']))
  assert re.findall(r"'(3\.\d+)'", workflow) == promised
  assert project['requires-python'] == f'>={promised[0]}'
  assert 'run: .ci/run' in workflow


@pytest.mark.parametrize('command', ['mechjax-train-sae', 'mechjax-eval-sae'])
def test_a_console_script_is_the_program_with_its_flags_and_its_explanation(command):
  scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
  module, _, function = scripts[command].partition(':')
  code = (
    f'import sys; from {module} import {function}; sys.argv = [{command!r}, "--help"]; {function}()'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert f'python -m {module}' in done.stdout
  assert '--run:' in done.stdout, done.stderr


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The files as a wheel lays them out, and as they lie in a checkout."""
  root = tmp_path_factory.mktemp('layout')
  shutil.copytree(ROOT / 'mechjax', root / 'site' / 'mechjax')
  shutil.copytree(ROOT / 'patches', root / 'site' / 'mechjax' / 'patches')
  shutil.copytree(ROOT / 'patches', root / 'checkout' / 'patches')
  return root


ORDERS = [
  'import patches.tunix as a; import mechjax.patches.tunix as b',
  'import mechjax.patches.tunix as b; import patches.tunix as a',
  'from patches import tunix as a; from mechjax.patches import tunix as b',
]


@pytest.mark.parametrize('imports', ORDERS)
def test_a_patch_is_one_module_under_both_names(installed, imports):
  run(f'{imports}\nassert a is b', installed / 'checkout', installed / 'site')


def test_a_checkout_that_is_not_installed_has_its_patches_too():
  run('from patches import tunix; assert tunix.__name__ == "patches.tunix"', ROOT, uninstalled=True)


def test_importing_mechjax_and_its_patches_loads_no_optional_library(installed):
  optional = "{'gguf', 'jinja2', 'tokenizers', 'tqdm', 'tunix', 'matplotlib', 'flax'}"
  run(
    'import sys, mechjax, mechjax.patches.tunix, mechjax.models.load\n'
    f'assert not {optional} & set(sys.modules)',
    installed / 'site',
  )


@pytest.fixture(scope='module')
def beside_a_clone(tmp_path_factory):
  """The folder that holds a clone, which is called mechjax."""
  parent = tmp_path_factory.mktemp('parent')
  shutil.copytree(ROOT / 'mechjax', parent / 'mechjax' / 'mechjax')
  shutil.copytree(ROOT / 'patches', parent / 'mechjax' / 'patches')
  shutil.copy(ROOT / '__init__.py', parent / 'mechjax')
  return parent


REAL = """
import mechjax, importlib.util
assert mechjax.sites.as_patterns('mlp_out.*'), mechjax.iterate
assert mechjax.__file__ == {file!r}, mechjax.__file__
assert importlib.util.find_spec('mechjax.mechjax') is None
"""


@pytest.mark.parametrize('uninstalled', [True, False])
def test_beside_a_clone_mechjax_is_the_package_and_no_empty_namespace(beside_a_clone, uninstalled):
  file = beside_a_clone / 'mechjax' / 'mechjax' / '__init__.py'
  run(REAL.format(file=str(file)), beside_a_clone, uninstalled=uninstalled)


def test_a_command_runs_beside_a_clone(beside_a_clone):
  command = [sys.executable, '-m', 'mechjax.patcher', 'check', '--help']
  done = subprocess.run(command, cwd=beside_a_clone, capture_output=True, text=True)
  assert (done.returncode, 'mechjax.patcher check' in done.stdout) == (0, True), done.stderr


def test_in_a_clone_mechjax_is_the_package_too(beside_a_clone):
  file = beside_a_clone / 'mechjax' / 'mechjax' / '__init__.py'
  run(REAL.format(file=str(file)), beside_a_clone / 'mechjax', uninstalled=True)


def test_no_file_says_to_install_mechjax_by_its_name():
  """The name is free on the package index: another project under that name would be installed."""
  suffixes = ('.py', '.md', '.ipynb', '.toml', '.txt', '.yml', '')
  tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
  names = tracked.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob('[!.]*/**/*')]
  for name in names:
    path = ROOT / name
    if path.suffix in suffixes and path.is_file() and path != pathlib.Path(__file__):
      text = path.read_text(errors='replace')
      found = re.search(r'(?<![\w/.])mechjax\[\w', text)
      found = found or re.search(r"""pip3? install\b[^\n]*[ '"]mechjax(?![-/.\w])""", text)
      assert not found, f'{name}: {found.group()!r}'


def run(code: str, *path: pathlib.Path, uninstalled: bool = False) -> None:
  """Runs code with these directories in front of everything installed.

  `uninstalled` takes out the finder by which an editable install answers for mechjax.patches.
  """
  setup = f'import sys; sys.path[:0] = {[str(p) for p in path]}\n'
  if uninstalled:
    setup += 'sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in repr(f)]\n'
  done = subprocess.run(
    [sys.executable, '-c', setup + code], cwd=path[0], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
