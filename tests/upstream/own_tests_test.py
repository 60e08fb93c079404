"""The tests that an upstream package ships pass with its patch installed and no harvest around.

Few wheels ship tests, so a test looks for them first. They run in a separate process, since each
upstream has its own settings for pytest and JAX. Some fail without the patch too (they
need packages that the wheel does not depend on, or another JAX); tests that fail are therefore run again
without the patch, and must fail there.
"""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RUN = """
import importlib, json, sys
import pytest

patch, out, *arguments = sys.argv[1:]
if patch:
  importlib.import_module(f'patches.{patch}').PATCHER.install()
passed = {}

class Record:
  def pytest_runtest_logreport(self, report):
    if report.when == 'call' or report.failed:
      name = report.nodeid.rpartition('/')[2]
      passed[name] = passed.get(name, True) and not report.failed

options = ['--import-mode=importlib', '--continue-on-collection-errors', '-p', 'no:cacheprovider']
pytest.main([*options, *arguments], plugins=[Record()])
with open(out, 'w') as file:
  json.dump(passed, file)
"""


def own_tests(distribution: str, *words: str) -> list[str]:
  """The files of tests in an installed distribution: all, or those that hold one of some words."""
  files = [pathlib.Path(f.locate()) for f in importlib.metadata.files(distribution) or ()]
  tests = [f for f in files if f.match('test_*.py') or f.match('*_test.py')]
  return [str(f) for f in tests if any(word in f.read_text() for word in words or [''])]


def run(patch: str, arguments: list[str], folder: pathlib.Path) -> dict[str, bool]:
  """Runs pytest with a patch installed; returns which tests passed."""
  out = folder / 'passed.json'
  command = [sys.executable, '-c', RUN, patch, str(out), *arguments]
  subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
  return json.loads(out.read_text())


def check(patch: str, files: list[str], folder: pathlib.Path, least: int, *options: str) -> None:
  """Asserts that at least so many tests pass with a patch, and that the others fail without it."""
  patched = run(patch, [*files, *options], folder)
  failed = [name for name, passed in patched.items() if not passed]
  assert len(patched) - len(failed) >= least
  if failed:
    again = {name.partition('::')[0] for name in failed}
    again = [file for file in files if pathlib.Path(file).name in again]
    unpatched = run('', [*again, *options], folder)
    assert [name for name in failed if unpatched[name]] == []


@pytest.mark.haiku
def test_haikus_tests_of_its_attention_pass(tmp_path):
  """Its own file, and those that try something on every module."""
  files = own_tests('dm-haiku', 'MultiHeadAttention', 'descriptors')
  check('haiku', files, tmp_path, 30, '-k', 'MultiHeadAttention')


@pytest.mark.upstream
def test_tunixs_tests_pass(tmp_path):
  check('tunix', own_tests('google-tunix'), tmp_path, 20)


@pytest.mark.parametrize(
  'distribution',
  [
    pytest.param('gemma', marks=pytest.mark.gemma),
    pytest.param('penzai', marks=pytest.mark.penzai),
    pytest.param('transformers', marks=pytest.mark.transformers),
  ],
)
def test_these_ship_no_tests(distribution):
  assert importlib.metadata.files(distribution)
  assert own_tests(distribution) == []
