"""Means and principal directions of differences are those of the library steering-vectors.

Its aggregators are run out of its wheel, fetched without its dependencies, of which they need PyTorch.
"""

import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

from mechjax.steering import mean_difference, principal

pytestmark = pytest.mark.truth

RELEASE = 'steering-vectors==0.12.2'


@pytest.fixture(scope='module')
def aggregators(tmp_path_factory):
  """The module of its aggregators, which imports nothing of the package."""
  directory = tmp_path_factory.mktemp('wheel')
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--quiet']
  subprocess.run([*command, '--dest', str(directory), RELEASE], check=True, timeout=120)
  (wheel,) = directory.glob('*.whl')
  with zipfile.ZipFile(wheel) as file:
    source = file.read('steering_vectors/aggregators.py').decode()
  module: dict = {'__name__': 'aggregators'}
  with pytest.MonkeyPatch.context() as patch:
    # Of an aggregator that is not run here.
    classifier = types.SimpleNamespace(LinearRegression=object, LogisticRegression=object)
    patch.setitem(sys.modules, 'sklearn', types.SimpleNamespace(linear_model=classifier))
    patch.setitem(sys.modules, 'sklearn.linear_model', classifier)
    exec(compile(source, 'steering_vectors/aggregators.py', 'exec'), module)
  return module


@pytest.mark.parametrize('seed', range(3))
def test_aggregators_agree(seed, aggregators):
  import torch

  random = np.random.default_rng(seed)
  plus, minus = random.standard_normal((2, 20, 6))
  plus += [1.0, 0, 0, -1, 0, 0]
  theirs = aggregators['mean_aggregator']()(torch.tensor(plus), torch.tensor(minus)).numpy()
  np.testing.assert_allclose(mean_difference(plus, minus), theirs, rtol=0, atol=1e-9)
  theirs = aggregators['pca_aggregator']()(torch.tensor(plus), torch.tensor(minus)).numpy()
  np.testing.assert_allclose(principal(plus - minus), theirs, rtol=0, atol=1e-6)
