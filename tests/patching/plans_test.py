"""Executables for a model and a metric are not used after a change of values that these read."""

import jax
import numpy as np
import pytest

from mechjax.patching import (
  ActivationPatching,
  AtPStar,
  Attribution,
  PatchingError,
  PathPatching,
  custom,
)
from tests.patching import linear

NODES = linear.nodes('mlp_out', positions=[0, 3])


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def methods(forward):
  return {
    'ActivationPatching': ActivationPatching(forward, NODES),
    'AtP': Attribution(forward, NODES),
    'integrated': Attribution(forward, NODES, steps=2),
    'AtPStar': AtPStar(forward, NODES),
    'PathPatching': PathPatching(
      forward, NODES, linear.nodes('resid_post.2', positions=[4]), together=True
    ),
  }


KINDS = pytest.mark.parametrize(
  'kind', ['ActivationPatching', 'AtP', 'integrated', 'AtPStar', 'PathPatching']
)


def values(method, metric):
  """Effects, followed by the metrics of the unpatched runs."""
  found = method(linear.PARAMS, linear.PAIRS, metric)
  ends = np.ravel(np.stack([found.base, found.other]))
  return np.concatenate([np.ravel(found.values), ends])


@KINDS
def test_disable_jit_is_refused_by_name(kind):
  method = methods(linear.forward)[kind]
  metric = custom('logit', lambda out, _: out[:, -1, 3])
  with jax.disable_jit(), pytest.raises(PatchingError, match='disable_jit is on'):
    values(method, metric)


@KINDS
def test_a_change_of_what_model_and_metric_read_is_seen(kind):
  scale, token = [1.0], [3]

  @jax.jit
  def scaled(x):
    return x * scale[0]

  def forward(params, tokens):
    return scaled(linear.forward(params, tokens))

  def logit(out, _):
    return out[:, -1, token[0]]

  kept = methods(forward)[kind]
  before = values(kept, custom('logit', logit))
  assert np.abs(before).max() > 1e-3
  scale[0] = 3.0
  np.testing.assert_allclose(values(kept, custom('logit', logit)), 3 * before, rtol=1e-4, atol=1e-5)
  token[0] = 5
  found = values(kept, custom('logit', logit))
  fresh = values(methods(forward)[kind], custom('logit', lambda out, _: out[:, -1, 5]))
  np.testing.assert_allclose(found, fresh, rtol=1e-4, atol=1e-5)
  assert np.abs(found - 3 * before).max() > 1e-3
