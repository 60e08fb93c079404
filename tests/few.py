"""A share of the tests, for the newest JAX (`pytest --few`): every file runs, with one case of every third test.

Rooms that read the programs of JAX keep all, because these change with its version. Elsewhere a new version removes or
renames functions, which any test of a module notices.
"""

import collections
import pathlib
from collections.abc import Iterable

import pytest

ROOMS = {'programs', 'harvest', 'forward', 'greenlets', 'stacking'}
"""Folders of tests that keep all cases."""

EVERY = 3
"""Of so many tests of another file, the first is kept."""


def select_dropped(items: Iterable[pytest.Item]) -> set[pytest.Item]:
  """Selects all tests outside of `ROOMS` but the first case of every third test of a file."""
  files: dict[pathlib.Path, dict[str, list[pytest.Item]]] = {}
  for item in items:
    if not ROOMS & {*item.path.relative_to(pathlib.Path(__file__).parent).parts}:
      tests = files.setdefault(item.path, collections.defaultdict(list))
      tests[item.nodeid.partition('[')[0]].append(item)
  dropped: set[pytest.Item] = set()
  for tests in files.values():
    for number, cases in enumerate(tests.values()):
      dropped.update(cases[1:] if number % EVERY == 0 else cases)
  return dropped
