"""Settings of all tests: eight CPU devices and strict promotion; pyproject adds our warnings.

The device count must be in the environment before JAX starts, so it is set while pytest imports
this file. Strict dtype promotion is on for our code and for the upstream code driven by it; a test
that runs an upstream which does not support it turns it off with
`jax.numpy_dtype_promotion('standard')`.
"""

import collections
import os
import pathlib

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import hypothesis
import jax
import pytest

# The time of an example depends on the machine and its load, and says nothing about the code.
# Continuous integration tries the same examples every time, so that it fails at changes and not by chance.
luck = not os.environ.get('CI')
hypothesis.settings.register_profile('mechjax', deadline=None, derandomize=not luck)
hypothesis.settings.load_profile('mechjax')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


READ_PROGRAMS = {'programs', 'harvest', 'forward', 'greenlets', 'stacking'}
"""Rooms that depend on how JAX stages and writes programs, which changes with its version."""


def pytest_addoption(parser):
  text = 'only the first and the last case of each parametrised test, except in rooms that read the programs of JAX'
  parser.addoption('--few', action='store_true', help=text)


def pytest_collection_modifyitems(config, items):
  if not config.getoption('few'):
    return
  cases = collections.defaultdict(list)
  for item in items:
    cases[item.path, item.function].append(item)
  rooms = pathlib.Path(__file__).parent
  dropped = {
    item
    for (path, _), group in cases.items()
    if not READ_PROGRAMS & {*path.relative_to(rooms).parts}
    for item in group[1:-1]
  }
  config.hook.pytest_deselected(items=[*dropped])
  items[:] = [item for item in items if item not in dropped]


def pytest_runtest_setup(item):
  if item.get_closest_marker('float16') and 'SSE4_2' in os.environ['XLA_FLAGS']:
    pytest.skip('XLA converts to float16 by an instruction that comes with AVX')


@pytest.fixture(scope='session')
def smollm2():
  """The default model, downloaded as in the demo."""
  import mechjax

  return mechjax.load('smollm2-135m', code='tunix')
