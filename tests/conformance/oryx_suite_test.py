"""Oryx's own suite, run on our harvest.

`oryx` is installed for its tests only (it cannot be imported on current JAX). Its test file is read where it lies
and re-pointed by our own patcher; nothing of it is copied. One case is expected to fail, and must keep failing:
it plants a name that the function does not sow, which Oryx ignores and we refuse (BUILD_NOTES).
"""

import importlib
import importlib.metadata
import sys
import unittest

import jax
import pytest

from mechjax.errors import SiteError
from mechjax.patcher import Patcher

SUITE = Patcher(
  'harvest_test',
  {
    '': [
      ('from oryx.core.interpreters import harvest', 'from mechjax import harvest'),
      ('from oryx.internal import test_util', 'test_util = parameterized'),
      ('from jax.experimental import shard_map', 'shard_map = jax'),
    ],
    'PlantTest.test_jit_should_remain_in_plant': ['pjit.pjit_p', 'pjit.jit_p'],
    'ShardMapTest.setUp': [
      'mesh_utils.create_device_mesh((1, 2))',
      'mesh_utils.create_device_mesh((1, 2), jax.devices()[:2])',
    ],
    'ReapTest.test_reap_of_checkpoint': ['ad_checkpoint.checkpoint', 'jax.checkpoint'],
    'ReapTest.test_reap_of_grad_of_checkpoint': ['ad_checkpoint.checkpoint', 'jax.checkpoint'],
    'ReapTest.test_reap_of_grad_of_nested_checkpoint': [
      ('ad_checkpoint.checkpoint', 'jax.checkpoint', 2)
    ],
    'PlantTest.test_plant_of_checkpoint': ['ad_checkpoint.checkpoint', 'jax.checkpoint'],
    'PlantTest.test_grad_of_plant_of_checkpoint': ['ad_checkpoint.checkpoint', 'jax.checkpoint'],
    'PlantTest.test_grad_plant_of_nested_checkpoint': [
      ('ad_checkpoint.checkpoint', 'jax.checkpoint', 2)
    ],
  },
  checked=('oryx', ['0.2.9']),
)

REFUSED = 'test_plant_doesnt_clobber_custom_jvp_rule'
"""Plants 'y' into a function without sows."""


def _load():
  """Oryx's test module, patched; its package is never imported."""
  file = importlib.metadata.distribution('oryx').locate_file(
    'oryx/core/interpreters/harvest_test.py'
  )
  filtering = jax.config.jax_traceback_filtering
  sys.path.insert(0, str(file.parent))
  try:
    SUITE.install_on_import()
    return importlib.import_module('harvest_test')
  finally:
    sys.path.remove(str(file.parent))
    jax.config.update('jax_traceback_filtering', filtering)


suite = _load()


@pytest.fixture(autouse=True)
def _promotion_as_in_oryx():
  with jax.numpy_dtype_promotion('standard'):
    yield


class ReapTest(suite.ReapTest):
  pass


class PlantTest(suite.PlantTest):
  pass


class HarvestTest(suite.HarvestTest):
  pass


class ControlFlowTest(suite.ControlFlowTest):
  pass


class ShardMapTest(suite.ShardMapTest):
  pass


setattr(PlantTest, REFUSED, unittest.expectedFailure(getattr(suite.PlantTest, REFUSED)))


def test_the_refused_case_fails_for_the_reason_given():
  with pytest.raises(SiteError, match="no site matches 'y'"):
    getattr(suite.PlantTest(REFUSED), REFUSED)()


def test_all_eighty_cases_are_here():
  loader = unittest.TestLoader()
  names = ('ReapTest', 'PlantTest', 'HarvestTest', 'ControlFlowTest', 'ShardMapTest')
  assert sum(len(loader.getTestCaseNames(globals()[n])) for n in names) == 80
