"""Loss against sparsity: every dictionary is drawn at its own numbers, zero and negative ones included."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.viz import charts, curves, logs, page, pareto
from mechjax.viz.logs import ChartError, LinearAxis
from mechjax.viz.pareto import Trained
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow

NASTY = '<b>&"$x_1$'
RESULTS = {
  'TopK': [Trained(64, 0.11, 'k = 64'), Trained(16, 0.42, 'k = 16'), Trained(32, 0.21, NASTY)],
  NASTY: [Trained(20.5, 0.5, 'sparsity 3e-3'), Trained(300.0, -0.01, 'sparsity 1e-4')],
}


def test_every_dictionary_is_drawn_where_its_numbers_are():
  ax = charts.figure(6, 4).subplots()
  pareto.draw(ax, RESULTS, title='t')
  lines = {
    line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith('_')
  }
  assert set(lines) == {*RESULTS}
  for name, points in RESULTS.items():
    drawn = sorted(zip(lines[name].get_xdata(), lines[name].get_ydata()))
    assert drawn == sorted((p.l0, p.delta_loss) for p in points)
    assert [*lines[name].get_markevery()] == [*range(len(points))]
  assert (ax.get_xscale(), ax.get_yscale()) == ('log', 'linear')
  low, high = ax.get_ylim()
  assert low < -0.01 < 0.5 < high
  assert '↙ better' in [t.get_text() for t in ax.texts]


def test_lines_differ_without_colour_in_the_order_of_their_heights():
  ax = charts.figure(6, 4).subplots()
  pareto.draw(ax, RESULTS, title='t')
  looks = {(line.get_linestyle(), line.get_marker()) for line in ax.get_lines()}
  assert len(looks) == len(RESULTS) + 1  # and the line at zero
  high = {**RESULTS, 'worst': [Trained(20, 3.0, '')]}
  ax = charts.figure(6, 4).subplots()
  pareto.draw(ax, high, title='t')
  assert ax.get_legend().get_texts()[0].get_text() == 'worst'


def test_a_page_says_the_setting_and_the_numbers_of_every_mark():
  content = pareto.section(RESULTS, title=NASTY)
  texts = Reader(content).texts
  for name, points in RESULTS.items():
    for p in points:
      x, y = logs.number(p.l0), logs.number(p.delta_loss)
      assert f'{name}, {p.setting}\n{pareto.L0}: {x}\n{pareto.DELTA_LOSS}: {y}' in texts
  assert 'b' not in Reader(content).tags


def test_marks_of_a_page_stand_where_their_numbers_are():
  content = pareto.section({'TopK': RESULTS['TopK']}, title='t')
  marks = re.findall(r'class="mark" transform="translate\(([\d.]+) ([\d.]+)\)"', content)[:3]
  x, y = np.array(marks, float).T
  assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # 16, 32, 64
  assert (y[0] - y[1]) / (y[1] - y[2]) == pytest.approx((0.42 - 0.21) / (0.21 - 0.11), rel=0.01)
  zero = float(re.findall(r'class="diagonal" d="M\d+ ([\d.]+)H', content)[0])
  assert (zero - y[2]) / (y[2] - y[1]) == pytest.approx(0.11 / (0.21 - 0.11), rel=0.01)


def test_two_dictionaries_of_equal_sparsity_stand_above_each_other():
  ax = charts.figure(6, 4).subplots()
  pareto.draw(ax, {'TopK': [Trained(32, 0.2, 'seed 0'), Trained(32, 0.3, 'seed 1')]}, title='t')
  assert ax.get_lines()[0].get_xdata().tolist() == [32, 32]


def test_a_picture_is_written(tmp_path):
  pareto.picture(RESULTS, tmp_path / 'p.png', title='$t$')
  from matplotlib import image

  pixels = image.imread(tmp_path / 'p.png')[..., :3]
  wanted = [int(curves.COLOURS[1][i : i + 2], 16) / 255 for i in (1, 3, 5)]
  assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 200


@pytest.mark.parametrize(
  ('results', 'says'),
  [
    ({}, 'no curves'),
    ({'a': []}, '0 xs'),
    ({'a': [Trained(0, 0.1, '')]}, 'x is 0.0'),
    ({'a': [Trained(3, math.nan, '')]}, 'y is nan'),
  ],
)
def test_what_cannot_be_drawn_is_refused(results, says):
  with pytest.raises(ChartError, match=says):
    pareto.section(results, title='t')


@given(st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 9)), min_size=1, max_size=5))
def test_an_even_axis_holds_zero_and_its_numbers_and_has_a_few_ticks(values):
  axis = LinearAxis.from_values(values)
  assert axis.low <= min(0, *values) <= max(0, *values) <= axis.high
  assert 3 <= len(axis.ticks) <= 9
  assert all(-1e-9 <= axis.to_fraction(t) <= 1 + 1e-9 for t in axis.ticks)
  assert any(abs(t) < 1e-9 * (axis.high - axis.low) for t in axis.ticks)
  steps = np.diff(axis.ticks)
  np.testing.assert_allclose(steps, steps[0])


def test_other_curves_are_as_they_were():
  content = curves.lines_svg({'a': ([1, 10], [1, 10])}, xlabel='x', ylabel='y')
  assert 'class="diagonal"' not in content
  assert '↙' not in content
  assert page.document('t', 'b').count('<style>') == 1
