"""Settings of all tests: eight CPU devices and strict promotion; pyproject adds our warnings.

The device count must be in the environment before JAX starts, so it is set while pytest imports
this file. Strict dtype promotion is on for our code and for the upstream code driven by it; a test
that runs an upstream which does not support it turns it off with
`jax.numpy_dtype_promotion('standard')`.
"""

import gc
import os
import pathlib

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import hypothesis
import jax
import pytest

from tests import few

MOST_MAPPINGS = 20_000

# The time of an example depends on the machine and its load, and says nothing about the code.
# Continuous integration tries the same examples every time, so that it fails at changes and not by chance.
luck = not os.environ.get('CI')
hypothesis.settings.register_profile('mechjax', deadline=None, derandomize=not luck)
hypothesis.settings.load_profile('mechjax')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


def pytest_addoption(parser):
  parser.addoption('--few', action='store_true', help='a share of the tests (tests/few.py)')


def pytest_collection_finish(session):
  """JAX makes and drops objects by the million, and full collections take a tenth of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(config, items):
  if not config.getoption('few'):
    return
  dropped = few.select_dropped(items)
  config.hook.pytest_deselected(items=[*dropped])
  items[:] = [item for item in items if item not in dropped]


def pytest_runtest_setup(item):
  if item.get_closest_marker('float16') and 'SSE4_2' in os.environ['XLA_FLAGS']:
    pytest.skip('XLA converts to float16 by an instruction that comes with AVX')


@pytest.fixture(scope='module', autouse=True)
def _bounded_programs():
  """Drops compiled programs before they are too many.

  Each takes some mappings of memory, of which Linux allows 65,530 in a process; XLA then ends it without a word.
  """
  yield
  mappings = pathlib.Path('/proc/self/maps')
  if mappings.exists() and mappings.read_bytes().count(b'\n') > MOST_MAPPINGS:
    jax.clear_caches()


@pytest.fixture(scope='session')
def smollm2():
  """The default model, downloaded as in the demo."""
  import mechjax

  return mechjax.load('smollm2-135m', code='tunix')
