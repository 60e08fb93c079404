"""What was compiled for a model and a metric is not used once they read something else."""

import jax
import numpy as np
import pytest

from mechjax.patching import AtPStar, Attribution, Exact, PatchingError, Paths, custom
from tests.models import decoders
from tests.patching import plain

PARAMS = decoders.params('gpt2')
NODES = plain.nodes('gpt2', 'mlp_out')


def methods(forward):
  return {
    'Exact': Exact(forward, NODES),
    'AtP': Attribution(forward, NODES),
    'integrated': Attribution(forward, NODES, steps=2),
    'AtPStar': AtPStar(forward, NODES),
    'Paths': Paths(forward, NODES, plain.nodes('gpt2', 'final_norm'), together=True),
  }


KINDS = pytest.mark.parametrize('kind', ['Exact', 'AtP', 'integrated', 'AtPStar', 'Paths'])


def values(method, metric):
  """Effects, and behind them the metrics of the unpatched runs."""
  found = method(PARAMS, plain.PAIRS, metric)
  ends = np.ravel(np.stack([found.base, found.other]))
  return np.concatenate([np.ravel(found.values), ends])


@KINDS
def test_disable_jit_is_refused_by_name(kind):
  method, metric = (
    methods(plain.forward('gpt2'))[kind],
    custom('logit', lambda out, _: out[:, -1, 3]),
  )
  with jax.disable_jit(), pytest.raises(PatchingError, match='disable_jit is on'):
    values(method, metric)


@KINDS
def test_a_change_of_what_model_and_metric_read_is_seen(kind):
  scale, token = [1.0], [3]
  model = plain.forward('gpt2')

  @jax.jit
  def scaled(x):
    return x * scale[0]

  def forward(params, tokens):
    return scaled(model(params, tokens))

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
