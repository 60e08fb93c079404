"""Pictures of searches for the largest nodes: curves and clouds on logarithmic axes hold every number."""

import html
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image as images

from mechjax.viz import charts, cloud, curves, logs, page, searches
from mechjax.viz.logs import ChartError
from tests.viz.effects import TOKENS, Cells, effects_of

pytestmark = pytest.mark.slow
KS = np.array([1, 2, 5, 10, 100])
COSTS = {
  'AtP*': (KS, KS + 3.0),
  'random <order>': (KS, 400.0 * KS / (KS + 1)),
  'AtP': (KS, 4.0 * KS),
}


def test_curves_hold_their_values_and_the_oracle_below_is_dashed():
  ax = charts.figure(6, 4).subplots()
  searches.cost_axes(ax, COSTS, title='t')
  drawn = {line.get_label(): line for line in ax.get_lines()}
  assert set(drawn) == {*COSTS, 'oracle'}
  for name, (ks, costs) in {**COSTS, 'oracle': (KS, KS)}.items():
    np.testing.assert_array_equal(drawn[name].get_xdata(), ks)
    np.testing.assert_array_equal(drawn[name].get_ydata(), costs)
  assert (ax.get_xscale(), ax.get_yscale()) == ('log', 'log')
  assert drawn['oracle'].is_dashed()
  names = [t.get_text() for t in ax.get_legend().get_texts()]
  assert names == ['random <order>', 'AtP', 'AtP*', 'oracle']  # from above as in the picture


def test_curves_differ_without_colour():
  content = searches.cost_section({str(i): (KS, KS * (2.0 + i)) for i in range(12)}, title='t')
  groups = re.findall(
    r'(?s)<g [^>]*><path class="line" stroke-dasharray="([^"]*)"[^>]*>(.*?)</g>', content
  )
  looks = {(dash, re.findall(r' d="([^"]*)"', marks)[0]) for dash, marks in groups}
  assert len(looks) == len(groups) == 13
  ax = charts.figure(6, 4).subplots()
  searches.cost_axes(ax, COSTS, title='t')
  assert [line.is_dashed() for line in ax.get_lines()] == [True, True, False, True]
  assert [line.get_marker() for line in ax.get_lines()] == ['s', '^', 'o', '']


def test_curves_on_a_page_stand_where_their_logarithms_are_and_say_their_numbers():
  content = searches.cost_section(COSTS, title='exact noising: loss')
  assert 'exact noising: loss' in content
  texts = Cells(content).texts
  for name, (ks, costs) in COSTS.items():
    for k, cost in zip(ks, costs):
      note = f'{name}\n{searches.KS}: {logs.number(k)}\n{searches.COST}: {logs.number(cost)}'
      assert note in texts
  line = re.findall(r'stroke-dasharray="5 4" d="M([^"]*)"', content)[0]
  points = np.array([p.split() for p in line.split('L')], float)
  np.testing.assert_allclose(
    np.diff(points[:, 0]), -np.diff(points[:, 1]) * _aspect(points), atol=0.2
  )
  share = (points[:, 0] - points[0, 0]) / (points[-1, 0] - points[0, 0])
  np.testing.assert_allclose(share, np.log10(KS) / 2, atol=1e-3)
  assert texts.count('random <order>') == 2  # next to the picture, and on the sample there
  assert not Cells(content).addresses


def _aspect(points):
  """Width over height of the oracle, which is a straight line."""
  return -np.ptp(points[:, 0]) / -np.ptp(points[:, 1])


def test_a_picture_of_curves_is_written(tmp_path):
  searches.cost_picture(COSTS, tmp_path / 'costs.png', title='t')
  pixels = images.imread(tmp_path / 'costs.png')[..., :3]
  wanted = [int(curves.COLOURS[1][i : i + 2], 16) / 255 for i in (1, 3, 5)]
  assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 200


def test_colours_of_curves_are_those_of_the_page_and_every_colour_knows_the_dark():
  style = page.page('', '', [], '')
  light, dark = re.findall(r':root \{([^}]*)\}', style)
  for i, colour in enumerate(curves.COLOURS):
    assert f'--c{i}: {colour};' in light
  assert re.findall(r'--[a-z]\w*(?=:)', light) == re.findall(r'--[a-z]\w*(?=:)', dark)


@pytest.mark.parametrize(
  ('points', 'says'),
  [
    (([1, 2, 3], [1, 2]), '3 xs and 2 ys'),
    (([0, 1], [1, 2]), 'x is 0.0'),
    (([1, 2], [1, math.inf]), 'y is inf'),
    (([1, 3, 2], [1, 2, 3]), 'from 3 to 2'),
  ],
)
def test_curves_that_logarithms_cannot_show_are_refused(points, says):
  with pytest.raises(ChartError, match=says):
    searches.cost_section({'AtP': points}, title='t')


def test_missed_nodes_are_those_that_the_estimate_hides():
  truth = effects_of('z')
  estimate = effects_of('z', title='AtP noising: logit difference')
  hidden = truth.ranking()[[4, 1, 40]]
  estimate.values[hidden] *= 0.01
  noise = truth.ranking()[45:]
  truth.values[noise] *= 1e-6
  estimate.values[noise] = 0.0
  assert searches.find_missed(truth, estimate, among=20) == [hidden[1], hidden[0]]
  assert searches.find_missed(truth, estimate, max_nodes=1) == [hidden[1]]
  content = searches.estimate_section(truth, estimate, TOKENS)
  listed = re.findall(r'<li[^>]*>([^<]*)</li>', content)
  labels = truth.nodes[hidden[[1, 0, 2]]].labels(TOKENS)
  assert [html.unescape(name) for name in listed] == labels
  for i in (hidden[0], truth.ranking()[0]):
    true, guess = (logs.number(e.contribution()[i]) for e in (truth, estimate))
    said = [
      t for t in Cells(content).texts if t.startswith(truth.nodes[int(i)].label(TOKENS) + '\n')
    ]
    assert said[0].split('\n')[1].endswith(f': {true}')
    assert said[0].split('\n')[2].endswith(f': {guess}')


def test_a_cloud_holds_every_point_and_lifts_what_is_too_small_to_the_edge(tmp_path):
  truth, estimate = effects_of('z'), effects_of('z', seed=1)
  estimate.values[7] = 0.0
  ax = charts.figure(6, 4).subplots()
  searches.estimate_axes(ax, truth, estimate, TOKENS, marked=[7, 11])
  x, y = (
    np.concatenate([get(line) for line in ax.get_lines() if line.get_marker() != 'None'])
    for get in (lambda line: line.get_xdata(), lambda line: line.get_ydata())
  )
  assert sorted(x) == sorted(truth.contribution())
  low = min(truth.contribution().min(), np.delete(estimate.contribution(), 7).min())
  assert sorted(y) == sorted(np.maximum(estimate.contribution(), low))
  said = ' '.join(t.get_text() for t in ax.texts)
  assert 'on the edges' in said
  assert truth.nodes[11].label(TOKENS) in said
  searches.estimate_picture(truth, estimate, TOKENS, tmp_path / 'cloud.png')
  assert images.imread(tmp_path / 'cloud.png')[..., :3].std() > 0.05


def test_rounding_errors_do_not_stretch_the_axes_of_a_cloud():
  ax = charts.figure(4, 4).subplots()
  cloud.cloud(
    ax, [1.0, 1e-20], [1e-12, 1.0], title='', xlabel='', ylabel='', marked={0: 'a', 1: 'b'}
  )
  marks = [line for line in ax.get_lines() if line.get_marker() == 'D']
  assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [(1.0, 1e-6), (1e-6, 1.0)]
  assert ax.get_xlim()[0] > 1e-7
  assert 'on the edges: 10⁻⁶ or less' in [t.get_text() for t in ax.texts]


@pytest.mark.parametrize(
  ('truth', 'estimate', 'says'),
  [
    ([1, 2], [1], '2 true numbers and 1'),
    ([1, -2], [1, 2], 'negative'),
    ([0], [0], 'all are zero'),
  ],
)
def test_clouds_that_logarithms_cannot_show_are_refused(truth, estimate, says):
  with pytest.raises(ChartError, match=says):
    cloud.cloud_svg(truth, estimate, xlabel='x', ylabel='y', marked={}, notes={})


@given(st.floats(1e-9, 1e9), st.floats(1, 1e12))
def test_an_axis_holds_its_numbers_and_has_ticks_in_order(low, ratio):
  span = logs.LogAxis.from_values([low, low * ratio])
  assert 0 < span.to_fraction(low) <= span.to_fraction(low * ratio) < 1
  assert len(span.ticks) >= 1
  assert span.ticks == sorted(span.ticks)
  assert all(0 <= span.to_fraction(t) <= 1 for t in span.ticks)


def test_numbers_are_written_for_readers():
  numbers = (0, 12345.6, 0.0125, 3e-6, 1e-5, 2.5e12)
  assert [logs.number(x) for x in numbers] == [
    '0',
    '12,346',
    '0.0125',
    '3×10⁻⁶',
    '10⁻⁵',
    '2.5×10¹²',
  ]
