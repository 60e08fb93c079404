"""`python -m mechjax.patcher` reports which patches apply to the installed packages."""

import importlib
import sys

import pytest

from mechjax.patcher import check
from mechjax.patcher.__main__ import main

PATCH = """
  from mechjax.patcher import Patcher, Patchers
  RULES = [('x + 1', 'x + 2'), ('return y', 'return -y')]
  A = Patcher('checked_up.a', f=RULES, checked=('pytest', ['0.1']))
  B = Patcher('checked_up.b', f=('x', 'z'), checked=('pytest', ['0.1']))
  PATCHER = Patchers(A, B)
  ON_DEMAND = Patcher('checked_up.b', f=('return x', 'return -x'), checked=('pytest', ['0.1']))
"""
ABSENT = """
  from mechjax.patcher import Patcher
  PATCHER = Patcher('absent_up.m', f=('x', 'y'), checked=('absent-up', ['1.0']))
"""


@pytest.fixture
def shipped(upstream, monkeypatch):
  """A package of patches for a package that raises when it is imported."""
  monkeypatch.setattr(check, 'PACKAGES', ('not_there', 'checked_patches'))
  upstream.write('', 'checked_patches.__init__')
  upstream.write(PATCH, 'checked_patches.up')
  upstream.write(ABSENT, 'checked_patches.absent')
  upstream.write('HELPER = 1\n', 'checked_patches.common')
  upstream.write('raise RuntimeError\n', 'checked_up.__init__')
  upstream.write('def f(x):\n  y = x + 1\n  return y\n', 'checked_up.a')
  upstream.write('def f(x):\n  return x\n', 'checked_up.b')
  return upstream


def rows(text):
  return [row.split() for row in text.strip().split('\n')]


def test_a_table_shows_every_patch_and_the_status_is_zero(shipped, capsys):
  assert main(['check']) == 0
  version = pytest.__version__
  assert rows(capsys.readouterr().out) == [
    ['upstream', 'version', 'patch', 'matches', 'status'],
    ['absent-up', '-', 'absent:', 'absent_up.m', '0/1', 'not', 'installed'],
    ['pytest', version, 'up:', 'checked_up.a', '2/2', 'ok'],
    ['pytest', version, 'up:', 'checked_up.b', '1/1', 'ok'],
    ['pytest', version, 'up.ON_DEMAND:', 'checked_up.b', '1/1', 'ok'],
  ]
  assert 'checked_up' not in sys.modules


def test_a_patch_that_does_not_apply_is_explained_and_the_status_is_one(shipped, capsys):
  shipped.write('def f(x):\n  y = x + 5\n  return y\n', 'checked_up.a')
  assert main(['check', 'up']) == 1
  out = capsys.readouterr().out
  assert rows(out)[1][-4:] == ['1/2', 'does', 'not', 'apply']
  assert rows(out)[2][-1] == 'ok'
  assert '-x + 1' in out
  assert '+x + 5' in out


def lose_b(shipped):
  (shipped.folder / 'checked_up' / 'b.py').unlink()
  importlib.invalidate_caches()


def test_a_module_that_the_checked_version_lost_fails(shipped, capsys):
  shipped.write(PATCH.replace("'0.1'", f"'0.1', '{pytest.__version__}'"), 'checked_patches.up')
  lose_b(shipped)
  assert main(['check', 'checked_up.b']) == 1
  assert 'has no module checked_up.b' in capsys.readouterr().out


def test_a_module_that_another_version_does_not_have_is_not_there_and_no_failure(shipped, capsys):
  lose_b(shipped)
  assert main(['check']) == 0
  found = rows(capsys.readouterr().out)
  assert found[2][2:] == ['up:', 'checked_up.a', '2/2', 'ok']
  assert found[3][2:] == ['up:', 'checked_up.b', '0/1', 'no', 'such', 'module']
  assert main(['check', 'up.ON_DEMAND']) == 0


def test_a_result_that_does_not_compile_fails(shipped, capsys):
  shipped.write(PATCH.replace("'return -y'", "'break'"), 'checked_patches.up')
  assert main(['check', 'checked_up.a']) == 1
  assert 'does not compile' in capsys.readouterr().out


def test_an_unknown_name_is_an_error_with_the_nearest(shipped, capsys):
  assert main(['check', 'upp']) == 1
  assert "unknown shipped patch 'upp'" in capsys.readouterr().err


def test_diff_prints_what_a_patch_changes(shipped, capsys):
  assert main(['diff', 'checked_up.b']) == 0
  assert '-  return x\n+  return z\n' in capsys.readouterr().out
  assert main(['diff', 'up']) == 0
  assert capsys.readouterr().out.count('+++ b/') == 3
  assert main(['diff', 'up.ON_DEMAND']) == 0
  assert '+  return -x\n' in capsys.readouterr().out


def test_the_patches_that_ship_with_mechjax_are_found():
  names = [file for file, _ in check.find_shipped()]
  assert names == sorted(names)
