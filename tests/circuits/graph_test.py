"""Graphs are complete, and influence, covers, shares and pruning agree with brute force on small graphs."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mechjax.circuits import (
  Columns,
  Graph,
  Targets,
  attribute,
  cover,
  influence,
  logits,
  prune,
  signed_shares,
)
from mechjax.circuits.graph import KINDS
from mechjax.errors import CircuitError
from tests.circuits import small


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_a_graph_is_complete_and_its_leaves_sum_to_each_target(name):
  with jax.enable_x64(True):
    frozen = small.frozen(name)
    graph = attribute(frozen, logits(frozen, 0.9), batch=16)
    assert graph.check() < 1e-10
    shares = graph.signed_shares()
    np.testing.assert_allclose(shares.sum(1), graph.targets.value, rtol=1e-9)
    assert not shares[:, graph.columns.of('feature')].any()
    assert 0 < graph.scores()['completeness'] < 1
    assert 0 < graph.scores()['replacement'] < 1


def test_a_graph_of_neurons_has_no_errors():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2', 'neurons')
    graph = attribute(frozen, logits(frozen, 0.9))
    assert graph.check() < 1e-10
    assert graph.scores()['completeness'] > 1 - 1e-9
    assert graph.scores()['replacement'] > 1 - 1e-9
    np.testing.assert_allclose(graph.signed_shares().sum(1), graph.targets.value, rtol=1e-9)


def test_without_dictionaries_errors_carry_all_that_is_not_a_token_or_a_bias():
  with jax.enable_x64(True):
    frozen = small.frozen('gemma', 'nothing')
    graph = attribute(frozen, logits(frozen, 0.9))
    size = np.abs(graph.table)
    share = size[:, graph.columns.of('error')].sum(1) / size.sum(1)
    expected = graph.weights @ (1 - share)
    np.testing.assert_allclose(graph.scores()['completeness'], expected)
    assert len(graph.table) == len(graph.targets)


def test_too_few_rows_are_given_to_the_features_with_the_most_influence():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    targets = logits(frozen, 0.9)
    whole = attribute(frozen, targets)
    part = attribute(frozen, targets, rows=1, batch=1, refresh=1)
    n = len(targets)
    direct = influence(whole.table[:n], np.full(n, -1), whole.weights[:n], np.full(n, 2))
    assert part.explained.tolist() == [int(direct[: len(frozen.features)].argmax())]
    more = attribute(frozen, targets, rows=20, batch=8, refresh=1)
    assert len({*more.explained}) == 20
    assert more.check() < 1e-10
    np.testing.assert_allclose(more.signed_shares().sum(1), targets.value, rtol=1e-9)
    rows = [len(targets) + i for i in more.explained]
    np.testing.assert_allclose(more.table[len(targets) :], whole.table[rows], atol=1e-12)


def test_nodes_are_described():
  with jax.enable_x64(True):
    frozen = small.frozen('gpt2')
    graph = attribute(frozen, rows=0)
    kinds = [graph.node(i).kind for i in range(len(graph.columns))]
    assert [k for k, _ in itertools.groupby(kinds)] == list(KINDS)
    f = frozen.features
    node = graph.node(5)
    assert (node.layer, node.position, node.latent) == (f.layer[5], f.position[5], f.latent[5])
    error = graph.node(graph.columns.of('error').start + 9 + 4)
    assert (error.layer, error.position) == (1, 4)
    with pytest.raises(CircuitError, match='node 999999'):
      graph.node(999999)
    with pytest.raises(CircuitError, match='no nodes of kind'):
      graph.columns.of('neuron')
    with pytest.raises(CircuitError, match='batch=0'):
      attribute(frozen, batch=0)


# --- brute force on small graphs

LAYERS, FEATURES = 2, 6


def random_graph(seed):
  """Twelve nodes: six features of two layers, an error of each layer, an embedding, and biases."""
  random = np.random.default_rng(seed)
  columns = Columns(FEATURES, LAYERS, 1)
  assert len(columns) == 6 + 2 + 1 + 1 + 2 + 2
  layer = np.array([0, 0, 0, 1, 1, 1])
  table = random.standard_normal((2 + FEATURES, len(columns)))
  table *= random.random(table.shape) < 0.7
  for row, i in enumerate(range(FEATURES), 2):
    table[row, :FEATURES] *= layer < layer[i]
    table[row, FEATURES : FEATURES + LAYERS] *= np.arange(LAYERS) < layer[i]
  table[:, columns.of('embedding')] = 1 + random.random((len(table), 1))
  values = table.sum(1)
  kind = np.float64
  targets = Targets(
    np.full(2, 4), np.zeros(2, int), np.zeros((2, 4)), np.zeros(2), values[:2],
    np.array([0.6, 0.3]), ('a', 'b'), (0, 1),
  )  # fmt: skip
  explained = np.arange(FEATURES)
  return Graph(
    columns, targets, explained, table, values.astype(kind), layer, np.zeros(FEATURES, int),
    explained, values[2:], np.zeros(1, int),
  )  # fmt: skip


def square(graph, table):
  """The table as a matrix of all nodes: columns, then targets."""
  n = len(graph.columns)
  out = np.zeros((n + 2, n + 2))
  out[n:, :n] = table[:2]
  out[graph.explained, :n] = table[2:]
  return out


def brute_influence(matrix, weights):
  size = np.abs(matrix)
  shares = size / np.maximum(size.sum(1, keepdims=True), 1e-300)
  p = np.zeros(len(matrix))
  p[-2:] = weights
  return p @ (np.linalg.inv(np.eye(len(p)) - shares) - np.eye(len(p)))


@pytest.mark.parametrize('seed', range(5))
def test_influence_and_shares_are_those_of_the_inverse(seed):
  graph = random_graph(seed)
  n = len(graph.columns)
  matrix = square(graph, graph.table)
  np.testing.assert_allclose(
    graph.influence(), brute_influence(matrix, graph.weights[:2])[:n], rtol=1e-10, atol=1e-14
  )
  values = np.ones(n + 2)
  values[graph.explained], values[n:] = graph.values[2:], graph.values[:2]
  through = np.linalg.inv(np.eye(n + 2) - matrix / values[:, None])[n:, :n] * values[n:, None]
  np.testing.assert_allclose(graph.total_effects(), through, rtol=1e-8, atol=1e-10)
  leaves = np.setdiff1d(np.arange(n), graph.explained)
  np.testing.assert_allclose(graph.signed_shares()[:, leaves], through[:, leaves], atol=1e-9)


def test_a_feature_without_any_contribution_counts_as_explained_in_both_dtypes():
  graph = random_graph(0)
  table = graph.table.copy()
  table[2] = 0
  found = [
    dataclasses.replace(graph, table=table.astype(kind)).scores()['completeness']
    for kind in (np.float64, np.float32)
  ]
  total = brute_influence(square(graph, table), graph.weights[:2])
  mine = np.concatenate([graph.weights[:2], total[:FEATURES]])
  size = np.abs(table)
  share = size[:, graph.columns.of('error')].sum(1) / np.maximum(size.sum(1), 1e-300)
  np.testing.assert_allclose(found, mine @ (1 - share) / mine.sum(), rtol=1e-5)


def brute_cover(values, share):
  order = sorted(range(len(values)), key=lambda i: -values[i])
  kept, total = set(), 0.0
  for i in order:
    if total >= share * sum(values) * (1 - 1e-12):
      break
    kept.add(i)
    total += values[i]
  return kept


@pytest.mark.parametrize('seed', range(5))
def test_pruning_agrees_with_brute_force(seed):
  graph = random_graph(seed)
  n, node_share, edge_share = len(graph.columns), 0.8, 0.9
  matrix = square(graph, graph.table)
  total = brute_influence(matrix, graph.weights[:2])[:n]
  kept = brute_cover(total, node_share) | {*range(*graph.columns.of('embedding').indices(n))}
  outside = [i for i in range(n) if i not in kept]
  matrix[outside], matrix[:, outside] = 0, 0
  again = brute_influence(matrix, graph.weights[:2])
  mine = again.copy()
  mine[n:] += graph.weights[:2]
  size = np.abs(matrix)
  score = size / np.maximum(size.sum(1, keepdims=True), 1e-300) * mine[:, None]
  edges = {divmod(i, n + 2) for i in brute_cover(score.reshape(-1), edge_share)}
  while True:
    gone = set()
    for i in kept:
      kind = graph.node(i).kind
      is_source = any(s == i for _, s in edges)
      has_input = any(t == i for t, _ in edges)
      if kind != 'embedding' and not (is_source and (has_input or kind != 'feature')):
        gone.add(i)
    if not gone:
      break
    kept -= gone
    edges = {(t, s) for t, s in edges if t not in gone and s not in gone}
  found = prune(graph, node_share, edge_share)
  assert {*found.nodes.tolist()} == kept
  owner = np.where(graph.node_of_row < 0, n + np.arange(len(graph.table)), graph.node_of_row)
  assert {*zip(owner[found.target_row].tolist(), found.source.tolist())} == edges
  np.testing.assert_array_equal(found.weight, graph.table[found.target_row, found.source])


def test_features_that_are_pruned_count_as_errors():
  graph = random_graph(0)
  everything = prune(graph, 1.0, 1.0)
  for name, value in graph.scores().items():
    np.testing.assert_allclose(everything.scores()[name], value)
  few = prune(graph, 0.3, 0.9)
  assert len(few.nodes) < len(everything.nodes)
  assert few.scores()['completeness'] < graph.scores()['completeness']


@hypothesis.given(
  st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40),
  st.floats(0, 1),
)
def test_a_cover_is_the_fewest_values_that_reach_the_share(values, share):
  values = np.array(values)
  kept = cover(values, share)
  total = values.sum()
  assert values[kept].sum() >= share * total * (1 - 1e-9)
  if kept.any():
    assert values[kept].min() >= values[~kept].max(initial=0)
    assert values[kept].sum() - values[kept].min() <= share * total * (1 + 1e-9)


@pytest.mark.parametrize('values', [[-1.0, 2.0], [np.nan, 1.0], [np.inf]])
def test_values_without_a_cover_are_refused(values):
  with pytest.raises(CircuitError, match='no cover'):
    cover(np.array(values), 0.5)


def test_wrong_shares_and_cycles_are_refused():
  with pytest.raises(CircuitError, match=r'share of 1\.5'):
    cover(np.ones(3), 1.5)
  cycle = np.array([[1.0, 1.0], [0.0, 1.0]])
  owner, weights = np.array([-1, 1]), np.array([1.0, 0.0])
  with pytest.raises(CircuitError, match='cycle'):
    influence(cycle, owner, weights, np.array([1, 0]))
  for wrong in (np.nan, 1e308):
    with pytest.raises(CircuitError, match='NaN or infinite'):
      influence(np.full((1, 2), wrong), owner[:1], weights[:1], np.array([1]))
  with pytest.raises(CircuitError, match='cycle'):
    signed_shares(cycle, owner, np.ones(2), np.array([1, 0]))
  with pytest.raises(CircuitError, match='activation 0'):
    signed_shares(cycle, owner, np.array([1.0, 0.0]), np.array([1, 0]))
