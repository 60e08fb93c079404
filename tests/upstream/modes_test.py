"""Every shipped patch can also be installed on import, and the command line reports it as valid."""

import subprocess
import sys

import pytest

from mechjax.patcher import __main__, check

PATCHES = [
  pytest.param('gemma', marks=pytest.mark.gemma),
  pytest.param('haiku', marks=pytest.mark.haiku),
  pytest.param('penzai', marks=pytest.mark.penzai),
  pytest.param('transformers_flax', marks=pytest.mark.transformers),
  pytest.param('tunix', marks=pytest.mark.upstream),
]
ON_IMPORT = """
import importlib
from mechjax.patcher import Patchers
from patches import {name}

patch = Patchers({name}.PATCHER).install_on_import()
assert not any(p.installed for p in patch.patchers)
for p in patch.patchers:
  module = importlib.import_module(p.module)
  assert p.installed and module.harvest
"""


@pytest.mark.parametrize('name', PATCHES)
def test_it_applies_to_modules_as_they_are_imported(name):
  code = ON_IMPORT.format(name=name)
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', PATCHES)
def test_every_rule_matches_in_the_version_it_was_checked_with(name, capsys):
  rows = [check.check(file, patcher) for file, patcher in check.find_shipped([name])]
  assert rows
  for row, (_, patcher) in zip(rows, check.find_shipped([name])):
    assert (row.status, row.matched) == ('ok', row.total)
    assert row.version in patcher.checked[1]
  assert __main__.main(['diff', name]) == 0
  assert capsys.readouterr().out.count('+++ b/') == len(rows)
