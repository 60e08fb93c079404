"""Unmodified upstream models are frozen as ours are: a Python loop over layers, other parameters, the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.circuits import (
  Frozen,
  Intervention,
  Maps,
  Neurons,
  Replacement,
  attribute,
  head_loadings,
  logits,
  qk_attribution,
)
from patches import tunix
from tests.upstream import tunix_families_test as upstream

pytestmark = pytest.mark.upstream

FAMILIES = [f for f in upstream.FAMILIES if f.id in ('qwen2', 'gemma2', 'gemma3')]
TOKENS = np.random.default_rng(1).integers(0, upstream.V, (1, upstream.T))


@pytest.fixture(autouse=True)
def promotion():
  """Upstream divides integer positions by floats."""
  with jax.numpy_dtype_promotion('standard'):
    yield


@pytest.fixture(scope='module', params=FAMILIES)
def model(request):
  """(forward, params, maps) of a tiny model."""
  family = request.param
  with tunix.PATCHER, jax.numpy_dtype_promotion('standard'):
    apply, params = family.apply(family.upstream()), family.params()

    def forward(params, tokens):
      return apply(params, tokens)[0]

    yield forward, params, Maps.of(forward, params, TOKENS, neurons=True)


def transcoders(maps):
  tc = sae.TopK(d_in=upstream.D, d_out=upstream.D, width=30, k=3)
  keys = jax.random.split(jax.random.key(0), maps.layout.n_layers)
  return Replacement({f'mlp_norm.{i}': (tc, tc.init(key)) for i, key in enumerate(keys)})


def test_graphs_of_upstream_models_are_complete(model):
  forward, params, maps = model
  for replaced in (transcoders(maps), Neurons(top=4)):
    frozen = Frozen.of(forward, params, TOKENS, replaced, maps=maps)
    graph = attribute(frozen, logits(frozen, 0.9), rows=40)
    assert (
      20 < len(graph.explained) <= 40
    )  # features of the last layer at other positions have no influence
    assert graph.check() < 1e-5
    np.testing.assert_allclose(
      graph.signed_shares().sum(1), graph.targets.value, rtol=1e-4, atol=1e-4
    )


def test_questions_about_upstream_models_have_answers(model):
  forward, params, maps = model
  frozen = Frozen.of(forward, params, TOKENS, transcoders(maps), maps=maps)
  targets = logits(frozen, 0.9)
  graph = attribute(frozen, targets, rows=0)
  loaded = head_loadings(frozen, graph, graph.columns.of('embedding').start, targets)
  np.testing.assert_allclose(loaded.heads.sum(1) + loaded.bypass, loaded.edge, atol=1e-5)
  why = qk_attribution(forward, params, frozen, 0, 1, -1, 5)
  np.testing.assert_allclose(why.total(), why.score, rtol=1e-3, atol=1e-4)
  do = Intervention(forward, params, frozen)
  before = do.semi_free({0: 1.0}, targets)
  after = do.semi_free({len(graph.layer) - 1: 5.0}, targets)
  assert not before.any()
  assert jnp.isfinite(after).all()
  assert np.abs(after).max() > 0
