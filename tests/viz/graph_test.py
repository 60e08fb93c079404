"""The page of an attribution graph: pruned as dense matrices prune it, drawn by a browser, inert for any text."""

import json

import numpy as np
import pytest

from mechjax.errors import CircuitError
from mechjax.viz.graph import graph_page, read_supernodes
from tests.viz import browser
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
NASTY = '</script><img src=x onerror=alert(1)>'
TOKENS = ['<s>', ' the', NASTY]
IDS = '[...document.querySelectorAll(".node")].map((node) => node.dataset.id)'


def graph(seed=0, n_features=8):
  """Three tokens, features and errors in three layers, a bias, and two outputs, with random links upwards."""
  random = np.random.default_rng(seed)
  nodes = [
    {'id': f'E_{t}', 'kind': 'embedding', 'position': t, 'label': TOKENS[t]} for t in range(3)
  ]
  nodes.append({'id': 'b', 'kind': 'bias', 'layer': 0, **({'position': 2} if seed % 2 else {})})
  layers = np.sort(random.integers(0, 3, n_features))
  for n, layer in enumerate(layers):
    kind = 'error' if n % 3 == 1 else 'feature'
    node = {
      'id': f'n{n}',
      'kind': kind,
      'layer': int(layer),
      'position': int(random.integers(0, 3)),
    }
    node['share'] = float(random.standard_normal())
    if kind == 'feature':
      node |= {'latent': n, 'activation': 1.5, 'label': f'<b>{n}', 'promoted': [' a', NASTY]}
      node['contexts'] = [[[NASTY, 0.0], [' ball', 2.0]]]
    nodes.append(node)
  for n, p in enumerate((0.6, 0.3)):
    nodes.append({'id': f'o{n}', 'kind': 'logit', 'position': 2, 'label': ' x', 'probability': p})
  level = [n.get('layer', -1 if n['kind'] == 'embedding' else 3) for n in nodes]
  links = [
    [s, t, float(random.standard_normal())]
    for s in range(len(nodes))
    for t in range(len(nodes))
    if level[s] < level[t] and nodes[t]['kind'] in ('feature', 'logit') and random.random() < 0.7
  ]
  return {'tokens': TOKENS, 'layers': 3, 'nodes': nodes, 'links': links}


def fewest(values, share):
  """A mask of the fewest numbers that hold a share of the sum."""
  order = np.argsort(-values, kind='stable')
  held = np.cumsum(values[order])
  n = np.searchsorted(held, share * held[-1] * (1 - 1e-12)) + 1
  mask = np.zeros(len(values), bool)
  mask[order[:n]] = True
  return mask


def influence(A, p):
  """Influence of each node on the outputs, and the scores of links; A[target, source]."""
  total = np.abs(A).sum(1, keepdims=True)
  hat = np.divide(np.abs(A), total, out=np.zeros_like(A), where=total > 0)
  B = np.linalg.inv(np.eye(len(A)) - hat) - np.eye(len(A))
  of_node = p @ B
  return of_node, hat * (of_node + p)[:, None]


def prune(g, node_share, link_share):
  """Ids of the kept nodes, and the kept links, by dense matrices."""
  n, kinds = len(g['nodes']), [node['kind'] for node in g['nodes']]
  A = np.zeros((n, n))
  for s, t, weight in g['links']:
    A[t, s] = float(f'{weight:.5g}')
  p = np.array([node.get('probability', 0.0) for node in g['nodes']])
  outputs, fixed = np.isin(kinds, ['logit']), np.isin(kinds, ['logit', 'embedding'])
  kept = np.zeros(n, bool)
  kept[~outputs] = fewest(influence(A, p)[0][~outputs], node_share)
  kept |= fixed
  inner = np.where(kept[:, None] & kept, A, 0)
  scores = influence(inner, p)[1]
  edges = fewest(scores.ravel(), link_share).reshape(n, n) & (inner != 0)
  while True:
    leads, begins = edges.any(0), edges.any(1)
    good = fixed | (leads & ((np.array(kinds) != 'feature') | begins))
    if (kept & ~good).sum() == 0:
      return {node['id'] for node, k in zip(g['nodes'], kept) if k}, edges
    kept &= good
    edges &= kept[:, None] & kept


@browser.needed
@pytest.mark.parametrize(
  ('seed', 'shares'), [(0, (0.8, 0.98)), (1, (0.5, 0.7)), (2, (1, 1)), (3, (0.6, 0.9))]
)
def test_the_browser_prunes_as_dense_matrices_do(tmp_path, seed, shares):
  g = graph(seed)
  content = graph_page(g, title='t', nodes=shares[0], links=shares[1])
  found, count = browser.measure(
    tmp_path, content, f'[{IDS}, document.getElementById("count").textContent]'
  )
  kept, edges = prune(g, *shares)
  assert {*found} == kept
  n, m = len(g['nodes']), len(g['links'])
  assert count == f'{len(kept)} of {n} nodes, {edges.sum()} of {m} links'


@browser.needed
def test_a_selected_node_shows_its_links_and_texts_and_nothing_becomes_an_element(tmp_path):
  g = graph()
  content = graph_page(g, title=NASTY, lead=NASTY, nodes=1, links=1, footer=NASTY)
  kept, edges = prune(g, 1, 1)
  at = next(
    i for i, node in enumerate(g['nodes']) if node['kind'] == 'feature' and node['id'] in kept
  )
  script = (
    '[document.getElementById("panel").innerText, document.querySelectorAll("img").length, '
    'document.querySelectorAll("#panel tbody tr").length, document.querySelectorAll(".lines .own").length]'
  )
  text, images, rows, own = browser.measure(
    tmp_path, content, script, address=f'#node={g["nodes"][at]["id"]}'
  )
  mine = edges[at].sum() + edges[:, at].sum()
  assert (images, rows, own) == (0, mine, mine)
  for expected in ('Contexts', '␣ball', 'Promoted tokens', NASTY.replace(' ', '␣'), 'Activation'):
    assert expected in text


@browser.needed
def test_the_page_fits_wide_and_narrow_windows_in_light_and_dark(tmp_path):
  content = graph_page(graph(), title='t')
  script = f'[...{browser.FITS}, {browser.PAPER}]'
  light = browser.measure(tmp_path, content, script)
  narrow = browser.measure(tmp_path, content, script, width=500)
  dark = browser.measure(tmp_path, content, script, dark=True)
  for inner, whole, _ in (light, narrow, dark):
    assert whole <= inner
  assert light[2] != dark[2]


@browser.needed
def test_supernodes_are_drawn_as_one_with_the_sums_of_their_links(tmp_path):
  g = graph()
  kept, edges = prune(g, 1, 1)
  index = {node['id']: i for i, node in enumerate(g['nodes'])}
  outputs = [index['o0'], index['o1']]
  members = [node['id'] for node in g['nodes'] if edges[outputs, index[node['id']]].any()][-2:]
  groups = {'a group': members, 'outputs': ['o0', 'o1']}
  content = graph_page(g, title='t', nodes=1, links=1, supernodes=groups)
  script = (
    f'[{IDS}, [...document.querySelectorAll("#panel tbody tr")].map((row) => '
    '[...row.children].map((cell) => cell.textContent))]'
  )
  ids, rows = browser.measure(tmp_path, content, script, address='#node=group:outputs')
  assert {*ids} == kept - {*members, 'o0', 'o1'} | {'group:a group', 'group:outputs'}
  inside = [index[member] for member in members]
  total = sum(weight for s, t, weight in g['links'] if s in inside and t in outputs)
  (weight,) = [float(row[1]) for row in rows if 'a group' in row[0]]
  assert weight == pytest.approx(total, rel=0.01)


def test_a_page_needs_nothing_from_elsewhere():
  content = graph_page(graph(), title='t')
  assert not Reader(content).addresses
  assert "default-src 'none'" in content


# --- refusals -------------------------------------------------------------------------------------------------


def change(part, value, index=None):
  g = graph()
  if index is None:
    return g | {part: value}
  items = [*g[part]]
  items[index] = items[index] | value if isinstance(value, dict) else value
  return g | {part: items}


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'tokens': [], 'layers': 3, 'nodes': []}, "without 'links'"),
    (change('tokens', []), 'tokens should be texts'),
    (change('nodes', {'id': ''}, 0), 'without an id'),
    (change('nodes', {'id': 'b'}, 0), "two nodes have the id 'b'"),
    (change('nodes', {'kind': 'head'}, 0), 'kind of node'),
    (change('nodes', {'colour': 1}, 0), 'field of node'),
    (change('nodes', {'position': 3}, 0), 'position 3 of 3'),
    (change('nodes', {'layer': 3}, 3), 'layer 3 of 3'),
    (change('nodes', {'share': float('nan')}, 3), 'share of node'),
    (change('nodes', {'probability': 2.0}, -1), 'probability of node'),
    (change('links', [0, 99, 1.0], 0), r'is not \[source, target, weight\]'),
    (change('links', [0, 1, float('inf')], 0), r'is not \[source, target, weight\]'),
    (change('links', [[4, 5, 1.0], [5, 4, 1.0]]), 'on a circle'),
    ({**graph(), 'nodes': graph()['nodes'][:3], 'links': []}, 'without a node of kind logit'),
  ],
)
def test_graphs_that_are_not_graphs_are_refused(wrong, message):
  with pytest.raises(CircuitError, match=message):
    graph_page(wrong, title='t')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'nodes': 0}, 'nodes=0'),
    ({'links': 1.5}, r'links=1\.5'),
    ({'supernodes': {'a': ['n99']}}, "node of the supernode 'a'"),
    ({'supernodes': {'a': ['n1'], 'b': ['n1']}}, "in the supernodes 'a' and 'b'"),
  ],
)
def test_settings_without_a_meaning_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    graph_page(graph(), title='t', **options)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('{"a": ["n1", "n2"]}', {'a': ['n1', 'n2']}),
    ('[["a", "n1", "n2"], ["b"]]', {'a': ['n1', 'n2'], 'b': []}),
    ('[1]', None),
    ('{"a": 1}', None),
    ('{', None),
  ],
)
def test_supernodes_come_from_files(tmp_path, text, expected):
  path = tmp_path / 'groups.json'
  path.write_text(text)
  if expected is None:
    with pytest.raises(CircuitError, match=r'groups\.json'):
      read_supernodes(path)
  else:
    assert read_supernodes(path) == expected
    assert json.loads(text)
