"""Why heads attend, what features are connected by their weights, and the best paths, each against brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.circuits import (
  Frozen,
  Invariant,
  Replacement,
  attribute,
  attribute_rows,
  de_embed,
  direct_weights,
  features,
  greedy_paths,
  head_weights,
  logits,
  qk_attribution,
)
from mechjax.errors import CircuitError
from tests.circuits import small
from tests.models import decoders


def explain(name, frozen, *args):
  return qk_attribution(small.forward(name), decoders.params(name, 'float64'), frozen, *args)


@pytest.mark.parametrize('name', ['gpt2', 'neox', 'gemma'])
def test_pairs_sum_to_the_score(name):
  """With biases, without and with rotation; with soft-caps, windows and QK-norm."""
  with jax.enable_x64(True):
    frozen = small.frozen(name)
    for layer, head, t, s in [(0, 1, 8, 6), (1, 3, -1, 2), (1, 0, 4, 4)]:
      why = explain(name, frozen, layer, head, t, s)
      score = float(small.acts(name)[f'attn_scores.{layer}'][0, head, t, s])
      np.testing.assert_allclose(why.capped, score, rtol=1e-9)
      cap = decoders.CONFIGS[name].attn_softcap
      expected = score if cap is None else cap * np.arctanh(score / cap)
      np.testing.assert_allclose(why.total(), expected, rtol=2e-5)
      pairs = why.scale * np.einsum('ha,hb->ab', why.query, why.key)
      np.testing.assert_allclose(why.by_query(), pairs.sum(1), atol=1e-12)
      np.testing.assert_allclose(why.by_key(), pairs.sum(0), atol=1e-12)
      largest = np.sort(np.abs(pairs).reshape(-1))[::-1][:5]
      found = why.top(5, block=7)
      np.testing.assert_allclose([abs(p[2]) for p in found], largest)
      np.testing.assert_allclose([pairs[a, b] for a, b, _ in found], [p[2] for p in found])


def test_the_parts_of_a_query_are_what_the_query_is_made_of():
  """A node that writes nothing else: the query without one embedding, by frozen norms and the weights."""
  with jax.enable_x64(True):
    frozen, params = small.frozen('gpt2'), decoders.params('gpt2', 'float64')
    why = explain('gpt2', frozen, 0, 2, 5, 3)
    p = jax.tree.map(lambda x: x[0], params['layers'])
    graph = attribute(frozen, rows=0)
    column = graph.columns.of('embedding').start + 5
    scale = frozen.maps.attn_norm.gain[0] * frozen.scales.attn_norm[0, 5]
    x = frozen.embed[5]
    expected = ((x - x.mean()) * scale) @ p['attn']['q'][:, 2]
    np.testing.assert_allclose(why.query[:, column], expected, atol=1e-10)


def test_heads_and_positions_that_do_not_exist_are_refused():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma')
    for args in [(7, 0, 1, 0), (0, 9, 1, 0), (0, 0, 1, 2), (0, 0, 99, 0)]:
      with pytest.raises(CircuitError, match='head'):
        explain('gemma', frozen, *args)
    with pytest.raises(CircuitError, match='does not see'):
      explain('gemma', frozen, 0, 0, 8, 0)


def test_scores_of_another_form_are_refused():
  def squared(params, tokens):
    return harvest.plant(small.forward('gpt2'))(
      {'attn_scores': lambda x: x * jnp.abs(x)}, params, tokens
    )

  def odd(params, tokens):
    return harvest.plant(small.forward('gpt2'))({'q': jnp.sin}, params, tokens)

  with jax.enable_x64(True):
    params = decoders.params('gpt2', 'float64')
    for run, message in ((odd, r"'q\.1' is not a linear"), (squared, 'nor a soft-cap')):
      frozen = Frozen.of(run, params, small.TOKENS[:1], Replacement({}), maps=small.maps('gpt2'))
      with pytest.raises(CircuitError, match=message):
        qk_attribution(run, params, frozen, 1, 0, 5, 3)
    with pytest.raises(CircuitError, match=r"'q\.0' is not a linear"):  # biases before a QK-norm
      explain('qwen', small.frozen('qwen'), 0, 0, 5, 3)


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_weights_times_activations_and_scales_are_edges(name):
  with jax.enable_x64(True):
    frozen, f = small.frozen(name), small.frozen(name).features
    low, high = np.flatnonzero(f.layer == 0), np.flatnonzero(f.layer == 1)
    table = attribute_rows(frozen, features(frozen, high)).features
    blind = dataclasses.replace(frozen, probs=jnp.zeros_like(frozen.probs))
    direct = attribute_rows(blind, features(blind, high)).features
    weights = direct_weights(frozen, low, high)
    heads = head_weights(frozen, 1, low, high)
    scales = frozen.scales
    post = np.ones(9) if scales.attn_post is None else np.asarray(scales.attn_post)[1]
    for j, target in enumerate(high):
      t = f.position[target]
      reading = float(scales.mlp_norm[1, t])
      for i, source in enumerate(low):
        s, amount = f.position[source], f.activation[source]
        expected = amount * weights[i, j] * reading if s == t else 0.0
        np.testing.assert_allclose(direct[j, source], expected, atol=1e-12)
        pattern = np.asarray(frozen.probs)[1, :, t, s]
        through = (pattern * heads[:, i, j]).sum() * scales.attn_norm[1, s] * post[t]
        np.testing.assert_allclose(
          table[j, source], expected + amount * through * reading, atol=1e-11
        )


def test_a_de_embedding_is_the_direct_contribution_of_each_token():
  with jax.enable_x64(True):
    frozen, f = small.frozen('gpt2'), small.frozen('gpt2').features
    index = np.flatnonzero(f.layer == 0)[:3]
    W_E = np.asarray(decoders.params('gpt2', 'float64')['embed']['tokens'])
    found = de_embed(W_E, frozen, index)
    blind = dataclasses.replace(frozen, probs=jnp.zeros_like(frozen.probs))
    for row, i in zip(found, index):
      t = f.position[i]
      swapped = dataclasses.replace(blind, embed=blind.embed.at[t].set(W_E[7]))
      direct = attribute_rows(swapped, features(swapped, [i])).embed[0, t]
      np.testing.assert_allclose(row[7] * frozen.scales.mlp_norm[0, t], direct, atol=1e-12)
    with pytest.raises(CircuitError, match='embeddings of shape'):
      de_embed(W_E[:, :5], frozen, index)
    with pytest.raises(CircuitError, match='W_E contains NaN'):
      de_embed(np.full_like(W_E, np.nan), frozen, index)


def test_greedy_paths_are_the_best_of_all_paths_where_all_are_followed():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    targets = logits(frozen, 0.9)
    graph = attribute(frozen, targets)
    F, n = len(frozen.features), len(targets)
    every = []
    for i in np.flatnonzero(graph.table[0]):
      if i >= F:
        every.append(((i,), graph.table[0, i]))
        continue
      for j in np.flatnonzero(graph.table[n + i]):
        share = graph.table[n + i, j] / frozen.features.activation[i]
        every.append(((i, j), graph.table[0, i] * share))
    every.sort(key=lambda p: -abs(p[1]))
    found = greedy_paths(frozen, targets, 0, depth=2, branches=10**6, keep=10**6)
    assert len(found) == len(every)
    np.testing.assert_allclose([p.contribution for p in found], [c for _, c in every], atol=1e-12)
    np.testing.assert_allclose(sum(p.contribution for p in found), targets.value[0], rtol=1e-9)
    capped = greedy_paths(frozen, targets, 0, depth=3, keep=5, cap=True)
    assert all(abs(p.contribution) <= abs(graph.table[0, p.nodes[0]]) + 1e-12 for p in capped)
    with pytest.raises(CircuitError, match='depth=0'):
      greedy_paths(frozen, targets, 0, depth=0)


def test_invariant_means_are_over_firings():
  table = Invariant.of(3)
  f, w = np.array([[1.0, 0, 2], [3, 0, 0]]), np.array([2.0, 5, -1])
  table.add(f, w)
  table.add(f[:1], w)
  np.testing.assert_allclose(table.mean(), [(1 + 3 + 1) * 2 / 3, 0, -2], atol=1e-12)
  with pytest.raises(CircuitError, match='3 latents'):
    table.add(f[:, :2], w)
  with pytest.raises(CircuitError, match='NaN'):
    table.add(f * np.nan, w)


def test_weights_of_features_that_do_not_exist_are_refused():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    with pytest.raises(CircuitError, match='active features'):
      direct_weights(frozen, [10**6], [0])
    with pytest.raises(CircuitError, match='layer 5'):
      head_weights(frozen, 5, [0], [60])
