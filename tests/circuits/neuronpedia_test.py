"""Graphs in Neuronpedia's JSON: ids as its front end reads them, round trips, influence by dense matrices, refusals."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.circuits import neuronpedia, neuronpedia_features
from mechjax.circuits.graph_data import (
  check_graph,
  check_supernodes,
  measure_influence,
  read_supernodes,
)
from mechjax.errors import CircuitError, SAEError
from mechjax.sae import ReLU, features

TOKENS = ['<s>', ' the', ' "ball"']


def graph(bias=True):
  nodes = [
    {'id': 'e0', 'kind': 'embedding', 'position': 0, 'token': 1},
    {'id': 'e1', 'kind': 'embedding', 'position': 1, 'token': 35},
    {'id': 'f', 'kind': 'feature', 'layer': 2, 'position': 1, 'latent': 17, 'label': 'sports', 'activation': 2.5},
    {'id': 'err', 'kind': 'error', 'layer': 2, 'position': 1},
    {'id': 'o', 'kind': 'logit', 'position': 2, 'token': 9, 'label': ' "x"', 'probability': 0.625},
  ]  # fmt: skip
  links = [[0, 2, 0.5], [1, 2, -0.25], [2, 4, 2.0], [3, 4, 0.5]]
  if bias:
    nodes += [
      {'id': 'b2', 'kind': 'bias', 'layer': 2, 'position': 1},
      {'id': 'b0', 'kind': 'bias', 'layer': 0, 'position': 1},
    ]
    links += [[5, 4, 0.25], [6, 2, -1.0]]
  return {'tokens': TOKENS, 'layers': 3, 'nodes': nodes, 'links': links}


def encode(**options):
  return neuronpedia.encode_graph(graph(), **{'slug': 'a', 'scan': 'm'} | options)


def test_ids_are_those_that_the_front_end_takes_apart():
  nodes = {node['node_id']: node for node in encode()['nodes']}
  assert {*nodes} == {'E_1_0', 'E_35_1', '2_17_1', '0_2_1', '0_0_1', '4_9_2'}
  feature = nodes['2_17_1']
  assert feature['feature'] == (2 + 17) * (2 + 17 + 1) // 2 + 17
  assert (feature['layer'], feature['jsNodeId']) == ('2', '2_17-0')
  assert (feature['clerp'], feature['activation']) == ('sports', 2.5)
  assert nodes['0_2_1']['feature'] == -1
  assert nodes['E_35_1']['layer'] == 'E'
  assert nodes['4_9_2']['layer'] == '4'
  assert nodes['4_9_2']['clerp'] == 'Output " "x"" (p=0.625)'


def test_biases_are_part_of_errors():
  found = encode()
  links = {(link['source'], link['target']): link['weight'] for link in found['links']}
  assert links['0_2_1', '4_9_2'] == 0.75
  assert links['0_0_1', '2_17_1'] == -1
  assert '2 bias nodes' in found['metadata']['info']['biases']
  assert 'info' not in neuronpedia.encode_graph(graph(bias=False), slug='a', scan='m')['metadata']


def test_a_bias_without_a_place_is_part_of_the_error_at_its_target():
  g = graph(bias=False)
  g['nodes'] += [{'id': 'b', 'kind': 'bias', 'layer': 2}, {'id': 'own', 'kind': 'bias'}]
  g['links'] += [[5, 4, 0.25], [6, 2, -1.0], [6, 4, 4.0]]
  found = neuronpedia.encode_graph(g, slug='a', scan='m')
  links = {(link['source'], link['target']): link['weight'] for link in found['links']}
  assert links['0_2_2', '4_9_2'] == 0.25
  assert links['0_0_1', '2_17_1'] == -1
  assert links['0_0_2', '4_9_2'] == 4


def test_a_graph_is_read_as_it_was_written(tmp_path):
  g = graph(bias=False)
  path = neuronpedia.write_graph(
    g, tmp_path, slug='one', scan='m', transcoders=['t'], supernodes={'a group': ['f', 'err']}
  )
  found, expected = neuronpedia.read_graph(path), check_graph(g)
  assert found['tokens'] == TOKENS
  assert found['layers'] == 3
  for node, plain in zip(found['nodes'], expected['nodes']):
    same = {k: v for k, v in plain.items() if k not in ('id', 'label')}
    assert {k: node[k] for k in same} == same
    if plain['label'] is not None:
      assert node['label'] == plain['label']
  assert found['links'] == expected['links']
  content = json.loads(path.read_text())
  assert content['qParams']['supernodes'] == [['a group', '2_17_1', '0_2_1']]
  assert content['metadata']['transcoder_list'] == ['t']


def test_a_directory_lists_each_graph_once(tmp_path):
  for slug in ('one', 'two', 'one'):
    neuronpedia.write_graph(graph(), tmp_path, slug=slug, scan='m')
  known = json.loads((tmp_path / 'graph-metadata.json').read_text())['graphs']
  assert [one['slug'] for one in known] == ['two', 'one']
  (tmp_path / 'graph-metadata.json').write_text('[]')
  with pytest.raises(CircuitError, match='is not a list of graphs'):
    neuronpedia.write_graph(graph(), tmp_path, slug='one', scan='m')


@given(st.integers(0, 2**32 - 1))
def test_influence_is_that_of_dense_matrices(seed):
  random = np.random.default_rng(seed)
  n = int(random.integers(3, 9))
  order = random.permutation(n)
  A = np.zeros((n, n))
  for s in range(n):
    for t in range(s + 1, n):
      if random.random() < 0.6:
        A[order[t], order[s]] = float(f'{random.standard_normal():.5g}')
  nodes = [{'id': str(i), 'kind': 'feature', 'layer': 0, 'position': 0} for i in range(n)]
  p = np.zeros(n)
  p[order[-1]] = 0.5
  nodes[order[-1]] = {'id': 'o', 'kind': 'logit', 'position': 0, 'probability': 0.5}
  links = [[int(s), int(t), A[t, s]] for t, s in np.argwhere(A)]
  found = measure_influence(
    check_graph({'tokens': ['a'], 'layers': 1, 'nodes': nodes, 'links': links})
  )
  total = np.abs(A).sum(1, keepdims=True)
  hat = np.divide(np.abs(A), total, out=np.zeros_like(A), where=total > 0)
  expected = p @ (np.linalg.inv(np.eye(n) - hat) - np.eye(n))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_influence_in_a_file_is_cumulative():
  nodes = {node['node_id']: node['influence'] for node in encode()['nodes']}
  g = check_graph(graph())
  raw = measure_influence(g)
  by_id = dict(zip([n['id'] for n in g['nodes']], raw))
  errors = {'0_2_1': by_id['err'] + by_id['b2'], '0_0_1': by_id['b0']}
  values = {'E_1_0': by_id['e0'], 'E_35_1': by_id['e1'], '2_17_1': by_id['f'], **errors}
  total = sum(values.values())
  for name, value in values.items():
    above = sum(v for v in values.values() if v >= value)
    assert nodes[name] == pytest.approx(above / total)
  assert nodes['4_9_2'] is None


# --- refusals -------------------------------------------------------------------------------------------------


def test_an_error_and_a_latent_with_one_id_are_refused():
  g = graph()
  g['nodes'].append({'id': 'same', 'kind': 'feature', 'layer': 0, 'position': 1, 'latent': 2})
  with pytest.raises(CircuitError, match=r"\['err', 'same'\] have the one id '0_2_1'"):
    neuronpedia.encode_graph(g, slug='a', scan='m')


@pytest.mark.parametrize(('index', 'field'), [(0, 'token'), (2, 'latent'), (4, 'token')])
def test_nodes_that_the_format_cannot_name_are_refused(index, field):
  g = graph()
  del g['nodes'][index][field]
  with pytest.raises(CircuitError, match=f"has no '{field}'"):
    neuronpedia.encode_graph(g, slug='a', scan='m')


@pytest.mark.parametrize('slug', ['', '../a', 'a b', '.hidden'])
def test_a_slug_is_a_name(tmp_path, slug):
  with pytest.raises(CircuitError, match='slug='):
    neuronpedia.write_graph(graph(), tmp_path, slug=slug, scan='m')
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '{"nodes": []}',
    '{"metadata": {"prompt_tokens": ["a"]}, "nodes": [{}], "links": []}',
  ],
)
def test_files_that_are_not_graphs_are_refused(tmp_path, text):
  path = tmp_path / 'graph.json'
  path.write_text(text)
  with pytest.raises(CircuitError, match=r'graph\.json'):
    neuronpedia.read_graph(path)
  with pytest.raises(CircuitError, match=r'none\.json'):
    neuronpedia.read_graph(tmp_path / 'none.json')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c['links'][0].update(source='9_9_9'), 'does not hold an attribution graph'),
    (lambda c: c['nodes'][0].update(feature_type='head'), 'does not hold an attribution graph'),
    (lambda c: c['nodes'][0].update(ctx_idx=7), 'position 7 of 3'),
    (lambda c: c['links'].append({'source': '4_9_2', 'target': '2_17_1', 'weight': 1.0}), 'circle'),
    (
      lambda c: c['nodes'].append(c['nodes'][4] | {'node_id': '5_9_2', 'layer': '5'}),
      'at the layers',
    ),
  ],
)
def test_damaged_graphs_are_refused(change, message):
  content = encode()
  change(content)
  with pytest.raises(CircuitError, match=message):
    neuronpedia.decode_graph(content)


# --- features -------------------------------------------------------------------------------------------------


@functools.cache
def collected():
  """Features of a small dictionary, and the texts of the tokens."""
  random = np.random.default_rng(0)
  V, D, M = 7, 4, 5
  embed = random.standard_normal((V, D)).astype(np.float32)
  params = {
    'W_enc': random.normal(size=(D, M)), 'W_dec': random.normal(size=(M, D)),
    'b_dec': np.zeros(D), 'b_enc': np.zeros(M),
  }  # fmt: skip
  found = features.collect(
    lambda tokens: jnp.asarray(embed)[tokens],
    ReLU(d_in=D, width=M, sparsity=0.0),
    {name: array.astype(np.float32) for name, array in params.items()},
    [(random.integers(0, V, (4, 9)), np.ones((4, 9), bool))],
    unembed=lambda d: d @ embed.T,
    settings=features.FeatureSettings(n_top=3, before=2, after=1, n_logits=2, n_near=2),
  )
  return found, [f' p{i}' for i in range(V)]


def test_the_json_of_a_latent_has_its_contexts_and_effects():
  found, pieces = collected()
  record = json.loads(
    json.dumps(neuronpedia_features.describe_latent(found, 3, pieces, transcoder='t'))
  )
  assert (record['transcoder_id'], record['index']) == ('t', 3)
  top = record['examples_quantiles'][0]['examples']
  assert len(top) == found.top.found[3].sum()
  for n, example in enumerate(top):
    own = example['train_token_ind']
    assert example['tokens_acts_list'][own] == pytest.approx(float(found.top.strength[3, n]))
    tokens = [int(t) for t in found.top.tokens[3, n] if t >= 0]
    assert example['tokens'] == [f' p{t}' for t in tokens]
  assert record['top_logits'] == [f' p{i}' for i in found.promoted.ids[3]]
  assert record['act_max'] == pytest.approx(float(found.maximum[3]))
  assert record['activation_frequency'] == pytest.approx(float(found.density[3]))
  assert 0 < record['act_min'] <= record['act_max']
  n_drawn = sum(len(q['examples']) for q in record['examples_quantiles'][1:])
  assert n_drawn == found.drawn.found[3].sum()
  with pytest.raises(CircuitError, match='has no text among 2'):
    neuronpedia_features.describe_latent(found, 3, pieces[:2], transcoder='t')
  with pytest.raises(SAEError, match='was not looked at'):
    neuronpedia_features.describe_latent(found, 9, pieces, transcoder='t')


def test_files_of_latents_are_found_by_the_number_of_their_node(tmp_path):
  found, pieces = collected()
  write = functools.partial(
    neuronpedia_features.write_latents, found, tmp_path, pieces=pieces, transcoder='t'
  )
  paths = write(scan='m', layer=3, latents=[2, 4]) + write(scan='m', layer=0, latents=[2])
  number = {(l, i): (l + i) * (l + i + 1) // 2 + i for l, i in ((3, 2), (3, 4), (0, 2))}
  assert [int(path.stem) for path in paths] == [*number.values()]
  records = neuronpedia_features.read_latents(tmp_path, 'm')
  assert set(records) == set(number)
  for (_, latent), record in records.items():
    expected = neuronpedia_features.describe_latent(found, latent, pieces, transcoder='t')
    assert record == json.loads(json.dumps(expected))


@given(st.integers(0, 200), st.integers(0, 10**7))
def test_every_number_is_that_of_one_layer_and_latent(layer, latent):
  assert neuronpedia_features.unpair(neuronpedia.pair(layer, latent)) == (layer, latent)


def test_numbers_below_zero_are_of_no_latent():
  with pytest.raises(CircuitError, match='number=-1'):
    neuronpedia_features.unpair(-1)


def test_files_that_are_not_records_are_refused(tmp_path):
  found, pieces = collected()
  write = functools.partial(neuronpedia_features.write_latents, found, tmp_path, pieces=pieces)
  with pytest.raises(CircuitError, match='is not a name'):
    write(scan='a/b', layer=0, transcoder='t')
  with pytest.raises(CircuitError, match='layer=-1'):
    write(scan='m', layer=-1, transcoder='t')
  with pytest.raises(SAEError, match='was not looked at'):
    write(scan='m', layer=0, transcoder='t', latents=[1, 9])
  with pytest.raises(CircuitError, match='no JSON files'):
    neuronpedia_features.read_latents(tmp_path, 'm')
  (path,) = write(scan='m', layer=1, transcoder='t', latents=[2])
  record = json.loads(path.read_text())
  path.rename(path.with_stem('7'))
  with pytest.raises(CircuitError, match='holds latent 2'):
    neuronpedia_features.read_latents(tmp_path, 'm')
  for broken, message in (
    ([], 'not the record'),
    (record | {'index': '2'}, "index='2'"),
    (record | {'examples_quantiles': [{}]}, 'without a list'),
    (record | {'examples_quantiles': [{'examples': [{'tokens': ['a']}]}]}, 'without tokens'),
    (record | {'examples_quantiles': [{'examples': [
      {'tokens': ['a'], 'tokens_acts_list': [1, 2], 'train_token_ind': 0}]}]}, '2 activations'),
  ):  # fmt: skip
    with pytest.raises(CircuitError, match=message):
      neuronpedia_features.check_record(broken)


# --- mistakes in plain data and in files ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('field', 'value'),
  [('tokens', v) for v in (None, 3, '<s>')]
  + [('nodes', v) for v in (None, 'x', [None], ['x'])]
  + [('links', v) for v in (None, 3, [3], ['abc'])]
  + [('layers', v) for v in (None, '3', 3.5, 0, True)],
)
def test_parts_of_a_graph_of_a_wrong_type_are_refused(field, value):
  with pytest.raises(CircuitError):
    check_graph(graph() | {field: value})
  for other in (None, [graph()], 'x'):
    with pytest.raises(CircuitError, match='not a graph as plain data'):
      check_graph(other)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('label', 5), ('promoted', 'abc'), ('promoted', [1]), ('contexts', 5), ('contexts', [1]),
    ('contexts', [[['a', 'b']]]), ('contexts', [[['a', float('nan')]]]), ('contexts', [[[1, 1.0]]]),
  ],
)  # fmt: skip
def test_texts_of_a_node_are_texts(field, value):
  changed = graph()
  changed['nodes'][2][field] = value
  with pytest.raises(CircuitError, match=f"{field} of node 'f'"):
    check_graph(changed)


def test_groups_are_lists_of_ids():
  for wrong in ({'a': 'f'}, {'a': None}, {5: ['f']}, ['f'], {'a': [['f']]}):
    with pytest.raises(CircuitError, match='supernode'):
      check_supernodes(wrong, ['f'])


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[["a", "x"], ["a", "y"]]', "two supernodes 'a'"),
    ('{"a": ["x"], "a": ["y"]}', "two supernodes 'a'"),
    ('[[["a"], "x"]]', 'does not hold supernodes'),
    ('[[1, "x"]]', 'does not hold supernodes'),
    ('{"a": "x"}', 'does not hold supernodes'),
    ('null', 'does not hold supernodes'),
    ('[' * 100_000, 'can be read'),
    (None, 'can be read'),
  ],
)
def test_files_of_groups_that_would_lose_some_are_refused(tmp_path, text, message):
  path = tmp_path / 'groups.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(CircuitError, match=message):
    read_supernodes(path)
  path.write_text('[["a", "x", "y"], ["b"]]')
  assert read_supernodes(path) == {'a': ['x', 'y'], 'b': []}
  path.write_text('{"a": ["x"]}')
  assert read_supernodes(path) == {'a': ['x']}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'slug': 'graph-metadata'}, 'list of graphs'),
    ({'slug': None}, 'slug=None'),
    ({'scan': ''}, "scan=''"),
    ({'scan': None}, 'scan=None'),
    ({'transcoders': 'ours'}, "transcoders='ours' is a text"),
    ({'node_threshold': float('nan')}, 'node_threshold=nan'),
    ({'node_threshold': 5}, 'node_threshold=5'),
  ],
)
def test_names_and_thresholds_are_checked_before_a_file_is_written(tmp_path, options, message):
  with pytest.raises(CircuitError, match=message):
    neuronpedia.write_graph(graph(), tmp_path, **{'slug': 'a', 'scan': 'm'} | options)
  assert not [*tmp_path.iterdir()]


def test_a_record_of_another_program_stays_in_the_list(tmp_path):
  (tmp_path / neuronpedia.METADATA).write_text('{"graphs": [1]}')
  neuronpedia.write_graph(graph(), tmp_path, slug='a', scan='m')
  assert json.loads((tmp_path / neuronpedia.METADATA).read_text())['graphs'][0] == 1


@pytest.mark.parametrize(
  'change',
  [
    lambda c: c['nodes'][0].update(node_id=5),
    lambda c: c['metadata'].update(prompt_tokens=None),
    lambda c: c['metadata'].update(prompt_tokens='abc'),
  ],
)
def test_ids_and_tokens_of_another_type_are_refused(change):
  content = encode()
  change(content)
  with pytest.raises(CircuitError):
    neuronpedia.decode_graph(content)
