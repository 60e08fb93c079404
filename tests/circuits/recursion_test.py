"""Recursive attribution and graphs as data: complete trees, sources of the direct attribution, shares that sum to 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.graph import attribute
from mechjax.circuits.graph_data import measure_influence
from mechjax.circuits.graph_export import as_data
from mechjax.circuits.neuronpedia import encode_graph
from mechjax.circuits.pruning import prune
from mechjax.circuits.recursion import recurse
from mechjax.circuits.replacement import Replacement
from mechjax.circuits.targets import logits
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from tests.circuits import models

NAMES = ['gemma', 'gpt2', 'neox']
D, M, T = 16, 24, 9
DICTIONARY = sae.ReLU(d_in=24, width=12, sparsity=0.0)
TRANSCODER = sae.ReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
PIECES = [f' t{i}' for i in range(T)]


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def parameters(dictionary, seed):
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(dictionary.init, jax.random.key(0))
  return {n: jnp.asarray(random.standard_normal(s.shape) / 2) for n, s in shapes.items()}


@functools.cache
def frozen(name):
  given = {f'mlp_norm.{l}': (TRANSCODER, parameters(TRANSCODER, l)) for l in range(2)}
  forward = functools.partial(models.apply, name)
  return Frozen.of(forward, models.params(name), models.TOKENS[:1], Replacement(given))


def table(name, latent, layer=1):
  acts = {s: models.sites(name)[f'{s}.{layer}'][:1] for s in ('z', 'v', 'attn_probs')}
  return attention.dfa(
    DICTIONARY, parameters(DICTIONARY, 9), [latent], z=acts['z'], v=acts['v'], probs=acts['attn_probs']
  )  # fmt: skip


def direction(latent):
  return attention.direction(DICTIONARY, parameters(DICTIONARY, 9), latent, 4)


@pytest.mark.parametrize('name', NAMES)
def test_sources_are_those_of_the_direct_attribution(name):
  found = recurse(frozen(name), direction(3), layer=1, position=6, depth=1, top=99)
  plain = table(name, 3)
  assert found.value == pytest.approx(float(plain.pre_activations()[0, 0, 6]), rel=1e-9)
  by_source = np.asarray(plain.by_source(6)).sum((0, 1, 2))
  sources = {c.position: c.value for c in found.children if c.kind == 'source'}
  for s, value in sources.items():
    assert value == pytest.approx(by_source[s], rel=1e-8, abs=1e-10)
  assert len(sources) == np.count_nonzero(by_source)
  (constant,) = [c.value for c in found.children if c.kind == 'constant']
  assert constant == pytest.approx(float(plain.constant[0]))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('top', [3, 500])
def test_the_children_of_every_node_sum_to_it(name, top):
  root = recurse(frozen(name), direction(5), layer=1, position=-1, depth=4, top=top)
  inner = [node for node in root.walk() if node.children]
  assert {node.kind for node in inner} == {'latent', 'source', 'feature'}
  size = max(abs(node.value) for node in root.walk())
  for node in inner:
    assert sum(c.value for c in node.children) == pytest.approx(
      node.value, rel=1e-8, abs=1e-9 * size
    )
    assert sum(c.share for c in node.children) == pytest.approx(node.share, rel=1e-8, abs=1e-9)
    assert len(node.children) <= top + 2
  if top == 500:
    assert not [node for node in root.walk() if node.kind == 'rest']
  kinds = {node.kind for node in root.walk()}
  assert {'embedding', 'error', 'feature'} <= kinds


def test_a_feature_contributes_by_its_decoder_row():
  """At the token itself and without attention in between: activation x decoder x read of the value."""
  name, t = 'gpt2', 4
  run, f = frozen(name), frozen(name).features
  root = recurse(run, direction(5), layer=1, position=t, depth=2, top=500)
  read = direction(5).read_stream(
    models.params(name)['layers']['attn']['v'][1],
    models.params(name)['layers']['attn_norm']['scale'][1],
    centred=True,
  )
  x = np.asarray(models.sites(name)['resid_pre.1'])[0]
  x = x - x.mean(-1, keepdims=True)
  r = 1 / np.sqrt((x**2).mean(-1) + models.CONFIGS[name].norm_eps)
  A = np.asarray(models.sites(name)['attn_probs.1'])[0, :, t]
  checked = 0
  for source in root.children:
    for node in source.children:
      if node.kind == 'feature':
        assert node.layer == 0
        d = parameters(TRANSCODER, 0)['W_dec'][node.latent]
        s = source.position
        amount = f.activation[(f.layer == 0) & (f.position == s) & (f.latent == node.latent)]
        expected = float(np.asarray(A[:, s] * r[s] @ (read @ d))) * float(amount[0])
        assert node.value == pytest.approx(expected, rel=1e-7, abs=1e-10)
        checked += 1
  assert checked > 10


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'layer': 2}, 'layer=2 of 2'),
    ({'layer': 1, 'position': 9}, 'position=9 of 9'),
    ({'layer': 1, 'depth': 0}, 'depth=0'),
    ({'layer': 1, 'top': 0}, 'top=0'),
  ],
)
def test_traces_that_do_not_exist_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    recurse(frozen('gpt2'), direction(5), **options)


def test_a_direction_of_other_heads_is_refused():
  other = attention.direction(DICTIONARY, parameters(DICTIONARY, 9), 0, 6)
  with pytest.raises(CircuitError, match=r'a direction \[6, 4\] for heads \[4, 6\]'):
    recurse(frozen('gpt2'), other, layer=1)


# --- graphs as data -------------------------------------------------------------------------------------------


@functools.cache
def graph():
  return attribute(frozen('gpt2'), logits(frozen('gpt2'), 0.7))


def text(token):
  return f'<{token}>'


def test_a_graph_as_data_has_the_same_sums_influences_and_shares():
  g = graph()
  data = as_data(g, PIECES, text=text, labels={(0, 3): 'three'})
  at = {node['id']: i for i, node in enumerate(data['nodes'])}
  sums = np.zeros(len(at))
  for _, t, weight in data['links']:
    sums[t] += weight
  for i, token in enumerate(g.targets.tokens):
    assert sums[at[f'logit.{token}']] == pytest.approx(g.values[i], rel=1e-3, abs=1e-3)
    assert data['nodes'][at[f'logit.{token}']]['label'] == f'<{token}>'
  found, total = measure_influence(data), g.influence()
  for column in range(0, len(g.columns), 5):
    node = g.node(column)
    if node.kind == 'feature':
      index = at[f'{node.layer}.{node.latent}@{node.position}']
      expected = total[column] * g.targets.weight.sum()
      assert found[index] == pytest.approx(expected, rel=1e-3, abs=1e-4)
      assert data['nodes'][index]['label'] == (
        'three' if (node.layer, node.latent) == (0, 3) else None
      )
  leaves = [n['share'] for n in data['nodes'] if n['kind'] in ('embedding', 'error', 'bias')]
  assert sum(leaves) == pytest.approx(1, abs=1e-6)


def test_a_pruned_graph_as_data_has_the_nodes_that_are_kept():
  small = prune(graph(), nodes=0.6, edges=0.9)
  data = as_data(small, PIECES, text=text)
  assert len(data['nodes']) == len(small.nodes) + len(small.graph.targets)
  assert len(data['links']) == len(small.weight)
  weights = [weight for *_, weight in data['links']]
  np.testing.assert_allclose(weights, small.weight, rtol=1e-4)
  nodes = encode_graph(data, slug='a', scan='m')['nodes']
  assert {'embedding', 'logit'} <= {node['feature_type'] for node in nodes}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pieces': PIECES[1:]}, '8 pieces of text for 9 positions'),
    ({'target': 99}, 'target=99'),
    ({'features': {0: None}}, 'without the texts of tokens'),
  ],
)
def test_texts_that_do_not_fit_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    as_data(**{'graph': graph(), 'pieces': PIECES} | options)
