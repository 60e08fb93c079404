"""Node sets: their numbers, cuts, names and coverage."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mechjax.errors import SiteError
from mechjax.harvest import SiteInfo
from mechjax.patching import PatchingError, nodes_of
from mechjax.sites import Site
from tests.patching import linear, plain


def info(name, shape, layer=None):
  return SiteInfo(
    Site(name, () if layer is None else (layer,)), shape, np.dtype('float32'), 'f.py:1'
  )


def test_heads_and_positions_make_one_node_each():
  nodes = plain.nodes('mistral', 'q, k, v, z')  # 4 query heads on 2 key-value heads
  assert len(nodes) == 2 * 5 * (4 + 2 + 2 + 4)
  assert [g.shape for g in nodes.grids] == [(2, n, 5, 1) for n in (4, 2, 2, 4)]
  assert str(nodes[0]) == 'q.0 head 0 position 0'


def test_a_key_head_says_which_query_heads_it_serves():
  keys = plain.nodes('mistral', 'k.1')
  node = keys[8]
  assert (node.head, node.position, node.queries) == (1, 3, (2, 3))
  label = node.label(['The', ' cat', ' sat', ' on', ' it'])
  assert label == "k.1 head 1 (of queries 2, 3) position 3 ' on'"
  last = plain.nodes('mistral', 'z.1', positions=[-1])[0]
  assert last.label(['The', ' cat', '<pad>', '<pad>', '<pad>']) == 'z.1 head 0 position -1'
  assert plain.nodes('gpt2', 'k.1')[0].queries == ()


@pytest.mark.parametrize(
  ('pattern', 'options', 'n'),
  [
    ('mlp_out', {}, 3 * 5),
    ('mlp_out.{0,2}', {'positions': 'together'}, 2),
    ('mlp_post', {'neurons': 'each'}, 3 * 5 * 8),
    ('mlp_post', {'neurons': [0, -1], 'positions': [-1]}, 3 * 2),
    ('embed, logits', {}, 10),
  ],
)
def test_axes_are_cut_or_spanned(pattern, options, n):
  assert len(linear.nodes(pattern, **options)) == n


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_choice_of_nodes_keeps_their_names(data):
  nodes = linear.nodes('embed, mlp_out') + linear.nodes('mlp_post.2', neurons=[1, 5])
  labels = nodes.labels()
  assert len(set(labels)) == len(nodes)
  index = data.draw(st.lists(st.integers(0, len(nodes) - 1), max_size=12))
  some = nodes[np.array(index, int)]
  assert some.labels() == [labels[i] for i in index]
  again = some[::-1]
  assert again.labels() == [labels[i] for i in index[::-1]]
  expected = {str(node.site) for node in some}
  assert {str(site) for site in some.sites()} == expected


def test_grouped_axes_of_heads_are_numbered_as_one():
  infos = [info('q', (2, 5, 6, 4), 0), info('attn_probs', (2, 2, 3, 5, 5), 0)]
  nodes = nodes_of(infos, 'attn_probs', axes={'attn_probs': 'BKGTS'})
  assert [n.head for n in nodes[::5]] == [0, 1, 2, 3, 4, 5]
  assert nodes.grids[0].layout.index('KG').shape == (1, 2, 3, 1, 1)


def test_what_does_not_fit_is_refused():
  with pytest.raises(SiteError, match='mlp_outt'):
    linear.nodes('mlp_outt')
  with pytest.raises(PatchingError, match=r'has 5 positions, and positions=\[5\]'):
    linear.nodes('embed', positions=[5])
  with pytest.raises(PatchingError, match="positions='every' is not 'each'"):
    linear.nodes('embed', positions='every')
  with pytest.raises(PatchingError, match='none of these sites has neurons'):
    linear.nodes('embed', neurons='each')
  with pytest.raises(PatchingError, match="axes '' do not describe it"):
    nodes_of([info('gate', (2, 5))], 'gate')
  for one in (linear.nodes('embed'), ['z.0'], Site('z'), linear.forward):
    with pytest.raises(PatchingError, match=r'needs the shapes of all sites'):
      nodes_of(one, 'z')
  with pytest.raises(PatchingError, match='cannot be swept as one'):
    nodes_of([info('k', (2, 5, 1, 4), 0), info('k', (2, 5, 1, 8), 1)], 'k')
  with pytest.raises(PatchingError, match='laid out'):
    plain.nodes('gpt2', 'embed') + linear.nodes('embed')


@pytest.mark.parametrize('option', ['positions', 'neurons'])
@pytest.mark.parametrize(
  ('choice', 'message'),
  [
    (np.array([True, False, True, False, False]), 'list of integers(.|\n)*a mask'),
    ([True, False], 'list of integers'),
    ([0.7, 1.2], 'list of integers'),
    (3, 'list of integers'),
    ([[0, 1]], 'list of integers'),
    ([1, 1], 'names an index twice'),
    (None, 'list of integers'),
  ],
)
def test_invalid_indices_are_refused(option, choice, message):
  with pytest.raises(PatchingError, match=message):
    linear.nodes('mlp_post', **{option: choice})


def test_indices_may_be_of_any_integer_type():
  for choice in ((0, 2), np.array([0, 2], np.uint8), range(0, 4, 2)):
    assert [n.position for n in linear.nodes('embed', positions=choice)] == [0, 2]
  assert not len(linear.nodes('embed', positions=[]))
  with pytest.raises(PatchingError, match='names an index twice'):
    linear.nodes('mlp_post', neurons=[-1, linear.F - 1])


def test_effects_become_a_heat_map_and_a_ranking():
  from mechjax.patching import ActivationPatching

  nodes = linear.nodes('mlp_out')
  effects = ActivationPatching(linear.forward, nodes[2:])(
    linear.PARAMS32, linear.PAIRS, linear.METRIC
  )
  grid = effects.grid()
  assert grid.shape == (3, 1, 5, 1)
  assert np.isnan(grid.ravel()).tolist() == [True, True] + [False] * 13
  node, best = effects.top(1)[0]
  assert grid[node.site.layer, 0, node.position, 0] == best == np.nanmax(grid)


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    ('BHTS', 'H without heads(.|\n)*N query heads'),
    ('BNTQ', r"unknown \['Q'\](.|\n)*N query heads"),
    ('bnts', "letters are upper case: 'BNTS'"),
    ('BNT', '3 letters for 4 axes'),
    ('BNTT', 'T is there twice'),
    ('LNTS', 'B, the axis of prompts, is missing'),
  ],
)
def test_letters_that_mean_another_axis_are_refused(axes, message):
  infos = [info('attn_probs', (2, 4, 5, 5), layer) for layer in range(2)]
  with pytest.raises(PatchingError, match=message):
    nodes_of(infos, 'attn_probs', axes={'attn_probs': axes})


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    ({'z.0': 'BTNH'}, "unknown site in axes= 'z.0'(.|\n)*did you mean 'z'"),
    ({'*': 'BTNH'}, r"unknown site in axes= '\*'(.|\n)*known: z"),
    ('BTNH', "must give the letters of sites by their names, got 'BTNH'"),
    ({'z': None}, 'must give the letters of sites by their names'),
  ],
)
def test_axes_of_no_site_are_refused(axes, message):
  with pytest.raises(PatchingError, match=message):
    nodes_of([info('z', (2, 5, 4, 6), 0)], 'z', axes=axes)
