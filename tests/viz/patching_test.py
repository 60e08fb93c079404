"""Pictures of patching: cells and bars show the measured values, with their names."""

import re

import numpy as np
import pytest
from matplotlib import image as images

from mechjax.patching import Attribution, Effects, PatchingError
from mechjax.viz import charts, cuts, page, patching, searches
from mechjax.viz.patching import View
from tests.patching import linear
from tests.viz.effects import TOKENS, Cells, H, L, T, effects_of

pytestmark = pytest.mark.slow


def axis(node, name):
  return node.site.path[0] if name == 'layer' else getattr(node, name)


# --- heat maps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('quantity', ['mean', 'contribution'])
@pytest.mark.parametrize(
  ('cut', 'rows', 'columns'),
  [('layer x position', L, T), ('layer x head', L, H), ('head x position', H, T)],
)
def test_a_cell_is_the_largest_node_behind_it_and_names_it(quantity, cut, rows, columns):
  effects = effects_of('z')
  (found,) = cuts.maps(effects, TOKENS, View(quantity, cut=cut))
  values = effects.mean() if quantity == 'mean' else effects.contribution()
  down, across = cut.split(' x ')
  shown = Cells(patching.table(found, limit=2.9)).cells
  for i in range(rows):
    for j in range(columns):
      behind = [
        n
        for n, node in enumerate(effects.nodes)
        if (axis(node, down), axis(node, across)) == (i, j)
      ]
      best = max(behind, key=lambda n: abs(values[n]))
      assert found.values[i, j] == values[best]
      assert shown[i][j].note.startswith(f'{effects.nodes[best].label(TOKENS)}: {values[best]:.4g}')
      assert found.reduction in shown[i][j].note
      assert float(shown[i][j].text) == pytest.approx(values[best], abs=0.006)
      assert ('down' in shown[i][j].kind) == (values[best] < 0)
  assert found.reduction.startswith('largest of ')


def test_a_sum_is_a_sum_and_says_so():
  effects = effects_of('z')
  by_position, by_head = cuts.maps(effects, None, View(reduce='sum'))
  cube = effects.mean().reshape(L, H, T)
  np.testing.assert_allclose(by_position.values, cube.sum(1))
  np.testing.assert_allclose(by_head.values, cube.sum(2))
  assert by_position.reduction == f'sum over {H} heads'
  assert by_head.notes[2][1] == f'layer 2, head 1: {cube[2, 1].sum():.4g} (sum over {T} positions)'
  assert (
    'not the effect of patching them together'
    in patching.sections(effects, view=View(reduce='sum'))[0]
  )


@pytest.mark.parametrize(
  ('pattern', 'options', 'view', 'expected'),
  [
    ('z', {}, View(), [('layer', 'position'), ('layer', 'head')]),
    ('z', {}, View(layer=1), [('head', 'position')]),
    ('z', {'positions': 'together'}, View(), [('layer', 'head')]),
    ('k', {}, View(), [('layer', 'position'), ('layer', 'head (of queries)')]),
    ('mlp_out', {}, View(), [('layer', 'position')]),
    ('mlp_out', {'positions': 'together'}, View(), [('', 'layer')]),
    ('mlp_post', {'positions': 'together', 'neurons': 'each'}, View(), [('layer', 'neuron')]),
    ('mlp_post', {'neurons': 'each'}, View(layer=0), [('position', 'neuron')]),
    ('embed', {}, View(), [('', 'position')]),
    ('embed', {'positions': [2]}, View(), [('', '')]),
    ('embed, z', {}, View(cut='layer x head'), [('layer', 'head')]),
  ],
)  # fmt: skip
def test_a_grid_is_cut_along_the_axes_that_it_has(pattern, options, view, expected):
  found = cuts.maps(effects_of(pattern, **options), TOKENS, view)
  assert [m.axes for m in found] == expected
  assert all(m.values.shape == (len(m.rows), len(m.columns)) for m in found)


def test_what_is_fixed_stands_in_the_title():
  assert cuts.maps(effects_of('z'), TOKENS, View(layer=2))[0].title == 'z layer 2'
  (found,) = cuts.maps(effects_of('mlp_out', positions=[2]), TOKENS)
  assert found.title == 'mlp_out position 2 ␣Mary'
  (found,) = cuts.maps(effects_of('mlp_out', positions='together'), TOKENS)
  assert found.title == 'mlp_out (all positions together)'


def test_equal_tokens_and_grouped_heads_stay_distinct():
  by_position, by_head = cuts.maps(effects_of('k'), TOKENS)
  assert by_position.columns == ['0 <b>', '1 ␣$x$', '2 ␣Mary', '3 "&', '4 ␣Mary']
  assert by_head.columns == ['0 (0-1)', '1 (2-3)']
  assert 'head 1 (of queries 2, 3)' in by_head.notes[0][1]


def test_nodes_that_were_not_chosen_are_visibly_missing():
  effects = effects_of('mlp_out')
  nodes = effects.nodes[np.arange(len(effects.nodes)) != 7]  # layer 1, position 2
  some = Effects(effects.title, nodes, np.delete(effects.values, 7, 0), effects.base, effects.other)
  (found,) = cuts.maps(some, TOKENS)
  ax = charts.figure(4, 3).subplots()
  drawn = patching.draw(ax, found, 1.0).get_array()
  assert np.argwhere(np.ma.getmaskarray(drawn)).tolist() == [[1, 2]]
  assert [p.get_hatch() for p in ax.patches if p.get_hatch()] == ['//////']
  cell = Cells(patching.table(found, 1.0)).cells[1][2]
  assert (cell.kind, cell.text, cell.note) == (['none'], '', 'layer 1, position 2 ␣Mary: no value')
  assert 'hatched: no value' in patching.sections(some, TOKENS)[0]
  assert 'hatched: no value' not in patching.sections(effects, TOKENS)[0]


def test_signed_colours_are_centred_on_zero_and_magnitudes_begin_there():
  effects = effects_of('mlp_out')
  for quantity, low in (('mean', -2.0), ('contribution', 0.0)):
    (found,) = cuts.maps(effects, None, View(quantity))
    image = patching.draw(charts.figure(4, 3).subplots(), found, 2.0)
    assert (image.norm.vmin, image.norm.vmax) == (low, 2.0)
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=0.01)
    blue = image.cmap(image.norm(2.0))
    assert blue[2] > blue[0]
  assert (found.values >= 0).all()


def test_maps_of_one_picture_have_one_scale_and_an_outlier_is_framed_and_said():
  values = np.linspace(-1, 1, len(effects_of('z, mlp_out').nodes))
  values[17] = 40.0
  effects = effects_of('z, mlp_out')
  found = cuts.maps(effects, TOKENS, View('error, logits', values))
  limit = cuts.common_limit(found)
  assert limit == pytest.approx(1.2 * 1.0)
  parts = patching.sections(effects, TOKENS, View('error, logits', values))
  assert all('class="ramp">-1.20<' in part for part in parts[:2])
  framed = [c for part in parts for row in Cells(part).cells for c in row if 'cut' in c.kind]
  assert [c.text for c in framed] == ['40.00'] * 2  # in both cuts of z
  assert 'framed: beyond ±1.20, 2 cells' in parts[0]
  ax = charts.figure(4, 3).subplots()
  patching.draw(ax, found[0], limit)
  assert [t.get_text() for t in ax.texts] == ['40.00']


def test_tokens_come_through_as_text_and_a_page_needs_nothing_from_elsewhere():
  effects = effects_of('z, k')
  read = Cells(page.page('t', 'l', patching.sections(effects, TOKENS), 'f'))
  assert '0 <b>' in read.texts
  assert '1 ␣$x$' in read.texts
  assert read.cells[0][0].note.count("'<b>'") == 1
  assert read.tags.count('b') == 20  # one for each bar, none from a token
  assert not {'script', 'link', 'img'} & set(read.tags)
  assert not read.addresses
  ax = charts.figure(4, 3).subplots()
  patching.draw(ax, cuts.maps(effects, TOKENS)[0], 1.0)
  label = ax.get_xticklabels()[1]
  assert (label.get_text(), label.get_parse_math()) == ('1 ␣$x$', False)


def test_a_long_axis_labels_as_many_ticks_as_can_be_read():
  ax = charts.figure(4, 3).subplots()
  charts.heatmap(
    ax, np.zeros((1, 300)), rows=['r'], columns=[str(i) for i in range(300)], title='', xlabel='',
    ylabel='', limit=1.0, signed=True,
  )  # fmt: skip
  labels = [t.get_text() for t in ax.get_xticklabels()]
  assert labels == [str(int(x)) for x in ax.get_xticks()]
  assert 32 <= len(labels) <= 64


# --- bars and whole pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize('layer', [None, 2])
def test_bars_are_the_largest_nodes_in_order(layer):
  effects = effects_of('z, embed')
  view = View(layer=layer, k=7)
  mean = effects.mean()
  own = [i for i, node in enumerate(effects.nodes) if layer in (None, node.site.layer)]
  order = sorted(own, key=lambda i: -abs(mean[i]))[:7]
  labels, values = patching.rank(effects, TOKENS, view)
  assert labels == [effects.nodes[i].label(TOKENS) for i in order]
  assert values == [mean[i] for i in order]
  texts = Cells(patching.sections(effects, TOKENS, view)[-1]).texts
  assert [t for t in texts if t in labels] == labels
  assert [t for t in texts if re.fullmatch(r'-?\d\.\d+', t)] == [f'{v:.3f}' for v in values]


def test_every_title_says_how_was_patched_and_every_scale_in_what():
  effects = effects_of('z, mlp_out')
  for part in patching.sections(effects, TOKENS, View('contribution')):
    assert 'exact noising: logit difference' in part
    assert '|change of logit difference| (mean over 3 pairs), logits' in part


def test_effects_of_a_model_become_a_picture_that_is_not_blank(tmp_path):
  nodes = linear.nodes('embed, mlp_out')
  effects = Attribution(linear.forward, nodes)(linear.PARAMS32, linear.PAIRS, linear.METRIC)
  path = tmp_path / 'effects.png'
  patching.picture(effects, [f'${i}' for i in range(linear.T)], path)
  pixels = images.imread(path)[..., :3]
  assert pixels.shape[1] > 1000
  for colour in (charts.UP, charts.DOWN):  # the ends of the scale, and bars of either sign
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 500
  read = Cells(patching.sections(effects)[1])
  cube = effects.grid(1, effects.mean())[:, 0, :, 0]
  for row, numbers in zip(read.cells, cube, strict=True):
    for cell, number in zip(row, numbers, strict=True):
      assert f': {number:.4g}' in cell.note


def test_a_picture_has_every_map_on_one_scale_and_the_bars_of_the_largest(monkeypatch, tmp_path):
  figures = []
  monkeypatch.setattr(charts, 'save', lambda fig, path: figures.append((fig, path)))
  effects = effects_of('embed, z')
  patching.picture(effects, TOKENS, tmp_path / 'x.png', View(k=4))
  ((fig, path),) = figures
  assert path == tmp_path / 'x.png'
  found = cuts.maps(effects, TOKENS)
  drawn = [ax for ax in fig.axes if ax.images]
  assert [ax.get_title('left') for ax in drawn] == [m.title for m in found]
  assert {ax.images[0].norm.vmax for ax in drawn} == {cuts.common_limit(found)}
  for ax, m in zip(drawn, found, strict=True):
    np.testing.assert_array_equal(ax.images[0].get_array(), m.values)
  labels, values = patching.rank(effects, TOKENS, View(k=4))
  bars = fig.axes[-1]
  assert [label.get_text() for label in bars.get_yticklabels()] == labels
  assert [bar.get_width() for bar in bars.patches] == values
  scales = [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel().startswith('change of')]
  assert len(scales) == 2  # the colours', and that of the bars
  assert fig.get_suptitle() == effects.title


@pytest.mark.parametrize(
  ('call', 'says'),
  [
    (lambda e: cuts.maps(e, TOKENS[:4]), '4 tokens for 5 positions'),
    (lambda e: patching.rank(e, TOKENS + ['x']), '6 tokens for 5 positions'),
    (lambda e: cuts.maps(e, None, View('x', np.zeros(59))), r'\(59,\) for 60 nodes'),
    (lambda e: cuts.maps(e, None, View('x', np.full(60, np.inf))), '60 of 60 values are infinite'),
    (lambda e: patching.rank(e, None, View('x', np.full(60, np.nan))), 'none of 60 nodes'),
    (lambda e: cuts.maps(e, None, View(layer=9)), 'layer 9'),
    (lambda e: cuts.maps(e, None, View(cut='layer x neuron')), 'layer x neuron'),
    (lambda e: View('median'), "'median' is neither"),
    (lambda e: View(cut='a x b'), "unknown cut 'a x b'"),
    (lambda e: View(reduce='min'), "'min' is neither"),
    (lambda e: View(k=0), 'k 0'),
    (lambda e: searches.find_missed(e, effects_of('mlp_out')), '60 true nodes and 15'),
    (lambda e: searches.find_missed(e, effects_of('z', heads=[1, 0, 2, 3])), 'not the same'),
    (lambda e: searches.estimate_section(e, e, TOKENS, [60]), 'node 60 .* there are 60'),
    (lambda e: searches.estimate_section(e, e, TOKENS[:4]), '4 tokens for 5 positions'),
  ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_both_numbers(call, says):
  with pytest.raises(PatchingError, match=says):
    call(effects_of('z'))
