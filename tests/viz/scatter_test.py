"""Scatter plots of two measurements: every point at its own numbers on both kinds of picture, and points refused."""

import re

import numpy as np
import pytest

from mechjax.viz import charts, curves, scatter
from mechjax.viz.logs import ChartError

pytestmark = pytest.mark.slow
XS, YS = [0.0, 1.0, 2.5], [0.5, 0.0, 3.0]


def test_points_are_drawn_where_their_numbers_are():
  ax = charts.figure(4, 4).subplots()
  scatter.scatter(ax, XS, YS, title='t', xlabel='x', ylabel='y')
  diagonal, dots = ax.get_lines()
  assert (dots.get_xdata().tolist(), dots.get_ydata().tolist()) == (XS, YS)
  np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
  assert ax.get_xlim() == ax.get_ylim()
  assert ax.get_xlim()[0] == 0
  assert ax.get_xlim()[1] > 3


def test_the_same_points_are_on_the_page():
  drawn = scatter.scatter_svg(XS, YS, xlabel='<x>', ylabel='y')
  (dots,) = re.findall(r'class="dots" d="([^"]*)"', drawn)
  at = np.array([point.split() for point in re.findall(r'M([-\d. ]*)h0', dots)], float)
  # Equal distances on the page are equal differences of the numbers, on both axes.
  across, up = np.diff(at[:, 0]), -np.diff(at[:, 1])
  np.testing.assert_allclose(across[1] / across[0], 1.5, rtol=0.01)
  np.testing.assert_allclose(up[1] / up[0], -6, rtol=0.01)
  assert '&lt;x&gt;' in drawn


@pytest.mark.parametrize(
  ('xs', 'ys', 'message'),
  [([], [], '0 xs'), ([1], [1, 2], '1 xs and 2 ys'), ([1, np.nan], [1, 2], 'missing or infinite')],
)
def test_points_that_have_no_place_are_refused(xs, ys, message):
  with pytest.raises(ChartError, match=message):
    scatter.scatter_svg(xs, ys, xlabel='x', ylabel='y')


def test_an_axis_of_x_can_be_linear_and_hold_zero():
  ax = charts.figure(4, 4).subplots()
  lines = {'a': ([0, 1, 2], [3, 0, 1])}
  curves.lines(ax, lines, title='t', xlabel='x', ylabel='y', linear='xy')
  assert (ax.get_xscale(), ax.get_yscale()) == ('linear', 'linear')
  assert ax.get_lines()[0].get_markevery() == [0, 1, 2]
  with pytest.raises(ChartError, match='linear=True'):
    curves.lines(ax, lines, title='t', xlabel='x', ylabel='y', linear=True)
  for linear in ('', 'y'):
    with pytest.raises(ChartError, match='x is 0'):
      curves.lines(ax, lines, title='t', xlabel='x', ylabel='y', linear=linear)
