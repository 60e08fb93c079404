"""Changes of features: along frozen edges, through heads, and in the model itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.circuits import (
  Intervention,
  Neurons,
  agreement,
  attribute,
  constrain,
  difference,
  features,
  head_loadings,
  logits,
  probe,
  push,
  read,
  source_of,
)
from mechjax.errors import CircuitError
from mechjax.models import decoder
from tests.circuits import small
from tests.models import decoders

FAMILIES = ['gpt2', 'neox', 'gemma']


def nodes_of(graph):
  """Some features, errors and embeddings."""
  errors, embeddings = (graph.columns.of(kind).start for kind in ('error', 'embedding'))
  return [0, len(graph.layer) - 1, errors + 3, embeddings + 1]


@pytest.mark.parametrize('name', FAMILIES)
def test_what_goes_up_from_a_source_is_what_comes_down_from_a_target(name):
  with jax.enable_x64(True):
    frozen = small.frozen(name)
    targets = logits(frozen, 0.9)
    graph = attribute(frozen, targets, rows=0)
    for node in nodes_of(graph):
      column = read(frozen, push(frozen, source_of(frozen, graph, node)), targets)
      np.testing.assert_allclose(column, graph.table[:, node], atol=1e-12)
    with pytest.raises(CircuitError, match='is a bias'):
      source_of(frozen, graph, len(graph.columns) - 1)


def test_a_frozen_change_is_linear_and_is_the_edge():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    targets = logits(frozen, 0.9)
    column = attribute(frozen, targets, rows=0).table[:, 3]
    one = constrain(frozen, {3: 2.0}, targets)
    np.testing.assert_allclose(one, column, atol=1e-12)
    np.testing.assert_allclose(constrain(frozen, {3: 3.0}, targets), 2 * one, rtol=1e-10)
    both = constrain(frozen, {3: 0.0, 4: 0.0}, targets)
    np.testing.assert_allclose(both, -one - constrain(frozen, {4: 2.0}, targets), atol=1e-12)


@pytest.mark.parametrize('name', FAMILIES)
def test_heads_and_what_passes_around_them_sum_to_the_edge(name):
  with jax.enable_x64(True):
    frozen = small.frozen(name)
    targets = logits(frozen, 0.9)
    graph = attribute(frozen, targets, rows=0)
    for node in nodes_of(graph):
      loaded = head_loadings(frozen, graph, node, targets)
      np.testing.assert_allclose(loaded.edge, graph.table[0, node], atol=1e-12)
      np.testing.assert_allclose(loaded.heads.sum(1) + loaded.bypass, loaded.edge, atol=1e-12)
      for layer in range(2):
        blind = dataclasses.replace(frozen, probs=frozen.probs.at[layer].set(0))
        around = read(blind, push(blind, source_of(frozen, graph, node)), targets)
        np.testing.assert_allclose(loaded.bypass[layer], around[0], atol=1e-12)
        one = dataclasses.replace(frozen, probs=frozen.probs.at[layer, 1:].set(0))
        head = read(one, push(one, source_of(frozen, graph, node)), targets) - around
        np.testing.assert_allclose(loaded.heads[layer, 0], head[0], atol=1e-12)


def test_edges_that_end_below_a_layer_do_not_load_its_heads():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    targets = probe(frozen, 'resid_mid.0', 5, np.ones(16))
    graph = attribute(frozen, targets, rows=0)
    node = graph.columns.of('embedding').start + 1
    loaded = head_loadings(frozen, graph, node, targets)
    assert loaded.heads[0].any()
    assert not loaded.heads[1].any()
    np.testing.assert_allclose(loaded.bypass[1], loaded.edge)
    with pytest.raises(CircuitError, match='target 4'):
      head_loadings(frozen, graph, node, targets, 4)


def last_layer_truth(name, frozen, index, factor, targets):
  """Centred logits after a change in the last layer, from the final norm and the unembedding."""
  f, params = frozen.features, decoders.params(name, 'float64')
  d = np.asarray(small.transcoder(1)[1]['W_dec'], np.float64)[f.latent[index]]
  change = np.zeros((1, 9, 16))
  change[0, f.position[index]] = (factor - 1) * f.activation[index] * d
  end = small.acts(name)['resid_post.1']
  ends = [decoder.unembed(params, x, decoders.CONFIGS[name])[0, -1] for x in (end, end + change)]
  centred = [x - x.mean() for x in ends]
  return (centred[1] - centred[0])[np.array(targets.tokens)]


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_a_feature_of_the_last_layer_changes_the_logits_through_the_final_norm(name):
  with jax.enable_x64(True):
    frozen = small.frozen(name)
    targets = logits(frozen, 0.9)
    index = int(np.flatnonzero((frozen.features.layer == 1) & (frozen.features.position == 8))[0])
    do = Intervention(small.forward(name), decoders.params(name, 'float64'), frozen)
    expected = last_layer_truth(name, frozen, index, 0.0, targets)
    assert np.abs(expected).max() > 1e-6
    np.testing.assert_allclose(do.semi_free({index: 0.0}, targets), expected, atol=1e-10)
    found = do.iterative({index: 0.0}, targets, small.transcoders())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    pair = difference(frozen, targets.tokens[0], targets.tokens[1])
    np.testing.assert_allclose(
      do.semi_free({index: 0.0}, pair), expected[0] - expected[1], atol=1e-10
    )


def test_features_above_react_in_the_iterative_model():
  """A truth with two layers: the features of layer 1 at the stream that the change makes."""
  with jax.enable_x64(True):
    frozen, name = small.frozen('gpt2'), 'gpt2'
    targets = logits(frozen, 0.9)
    config, params = decoders.CONFIGS[name], decoders.params(name, 'float64')
    index = int(np.flatnonzero(frozen.features.layer == 0)[-1])
    do = Intervention(small.forward(name), params, frozen)
    found = do.iterative({index: 0.0}, targets, small.transcoders())

    tc, weights = small.transcoder(1)
    weights = {n: x.astype(np.float64) for n, x in weights.items()}
    f = frozen.features
    d = np.asarray(small.transcoder(0)[1]['W_dec'], np.float64)[f.latent[index]]
    writes = jnp.stack([small.acts(name)[f'mlp_out.{l}'][0] for l in range(2)])
    writes = writes.at[0, f.position[index]].add(-f.activation[index] * d)
    tree = jax.tree.map(lambda a: a[1], params['layers'])
    p = tree['attn']
    x = small.acts(name)['embed'][0]
    # The stream of layer 1 with the clean patterns and the norms of the new stream.
    probs = small.acts(name)['attn_probs.1'][0]
    x = small.acts(name)['resid_mid.0'][0] + writes[0]
    h = small.norm(config, tree['attn_norm'], x, x)
    v = jnp.einsum('td,dkh->tkh', h, p['v']) + p['v_bias']
    out = jnp.einsum('nts,snh,nhd->td', probs, v, p['o']) + p['o_bias']
    middle = x + out
    h = small.norm(config, tree['mlp_norm'], middle, middle)
    y = tc.decode(weights, tc.encode(weights, h), h) + frozen.errors[1]
    logits_now = decoder.unembed(params, (middle + y)[None], config)[0, -1]
    before = small.acts(name)['logits'][0, -1]
    change = (logits_now - logits_now.mean()) - (before - before.mean())
    np.testing.assert_allclose(found, change[np.array(targets.tokens)], atol=1e-6)
    assert np.abs(found).max() > 1e-4


def test_a_change_of_nothing_changes_nothing():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    targets = logits(frozen, 0.9)
    do = Intervention(small.forward('gemma'), decoders.params('gemma', 'float64'), frozen)
    assert not do.semi_free({0: 1.0}, targets).any()
    assert not do.iterative({0: 1.0}, targets, small.transcoders()).any()


@pytest.mark.parametrize('factors', [{}, {0: np.nan}, {10**6: 0.0}])
def test_changes_that_do_not_exist_are_refused(factors):
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    with pytest.raises(CircuitError, match=r'factors|feature 1000000'):
      constrain(frozen, factors, logits(frozen))


def test_what_another_run_cannot_measure_is_refused():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    do = Intervention(small.forward('gemma'), decoders.params('gemma', 'float64'), frozen)
    named = probe(frozen, 'final_norm', -1, np.ones(16), name='logit 3 - 4')
    for other in (features(frozen, [60]), named, dataclasses.replace(named, names=(), tokens=())):
      with pytest.raises(CircuitError, match='not measured in another run'):
        do.semi_free({0: 0.0}, other)
    with pytest.raises(CircuitError, match='cannot be computed again'):
      do.iterative({0: 0.0}, logits(frozen), Neurons())


def test_agreement_is_of_signs_and_ranks():
  found = agreement(np.array([1.0, -2.0, 3.0, 4.0]), np.array([2.0, -5.0, 6.0, -0.1]))
  assert found.signs == 0.75
  np.testing.assert_allclose(found.spearman, 0.4)
  assert np.isnan(agreement(np.ones(3), np.ones(3)).spearman)
  for a, b in [
    (np.ones(2), np.ones(3)),
    (np.ones(0), np.ones(0)),
    (np.ones(1), np.array([np.inf])),
    (['a'], ['b']),
  ]:
    with pytest.raises(CircuitError, match='changes of shapes'):
      agreement(a, b)


def test_an_intervention_that_was_used_before_answers_as_a_new_one():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    targets = logits(frozen, 0.9)
    make = lambda: Intervention(small.forward('gemma'), decoders.params('gemma', 'float64'), frozen)  # noqa: E731
    used, other = make(), small.transcoders((1,), skip=False)
    used.semi_free({1: 0.0}, targets)
    used.iterative({1: 0.0}, targets, small.transcoders())
    with pytest.raises(CircuitError, match='differs from the frozen run'):
      used.iterative({1: 0.0}, targets, other)
    change = {3: 0.0}
    np.testing.assert_array_equal(
      used.semi_free(change, targets), make().semi_free(change, targets)
    )
    again = small.transcoders()
    np.testing.assert_array_equal(
      used.iterative(change, targets, again), make().iterative(change, targets, again)
    )


def test_a_model_that_changes_between_two_calls_is_refused():
  with jax.enable_x64(True):
    frozen, strength = small.frozen('gpt2'), np.ones(1)
    forward, params = small.forward('gpt2'), dict(decoders.params('gpt2', 'float64'))

    def scaled(params, tokens):
      layers = jax.tree.map(lambda x: strength[0] * x, params['layers'])
      return forward({**params, 'layers': layers}, tokens)

    do = Intervention(scaled, params, frozen)
    targets = logits(frozen, 0.9)
    first = do.semi_free({3: 0.0}, targets)
    strength[0] = 1.5
    with pytest.raises(CircuitError, match='differs from the frozen run'):
      do.semi_free({3: 0.0}, targets)
    strength[0] = 1
    np.testing.assert_allclose(do.semi_free({3: 0.0}, targets), first, rtol=1e-9)
    params['layers'] = jax.tree.map(lambda x: 1.5 * x, params['layers'])
    with pytest.raises(CircuitError, match='differs from the frozen run'):
      do.semi_free({3: 0.0}, targets)
