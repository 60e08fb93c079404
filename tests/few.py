"""A share of the cases, for the newest JAX (`pytest --few`): every test runs, with the first of its parameters.

Rooms that read the programs of JAX keep all cases, because these change with its version.
"""

import collections
import pathlib
from collections.abc import Iterable

import pytest

ROOMS = {'programs', 'harvest', 'forward', 'greenlets', 'stacking'}
"""Folders of tests that keep all cases."""


def select_dropped(items: Iterable[pytest.Item]) -> set[pytest.Item]:
  """Selects all cases but the first of each parametrised test outside of `ROOMS`."""
  cases = collections.defaultdict(list)
  for item in items:
    if not ROOMS & {*item.path.relative_to(pathlib.Path(__file__).parent).parts}:
      cases[item.nodeid.partition('[')[0]].append(item)
  return {item for group in cases.values() for item in group[1:]}
