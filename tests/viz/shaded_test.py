"""Shaded points: at their own numbers and shades on both kinds of picture, and points refused."""

import re

import numpy as np
import pytest

from mechjax.viz import charts, shaded
from mechjax.viz.logs import ChartError

pytestmark = pytest.mark.slow
XS, YS, SHADES = [1.0, 10.0, 100.0, 5.0], [0.5, -1.0, 0.0, 0.25], [0.0, 0.5, 2.0, -1.0]
LABELS = {'xlabel': 'x', 'ylabel': '<y>', 'shade': 'z'}


def test_points_are_drawn_where_their_numbers_are_the_strong_ones_last():
  ax = charts.figure(5, 4).subplots()
  shaded.points(
    ax, XS, YS, SHADES, title='t', span=(0, 1), log='x', marked={1: 'a$b'}, **LABELS
  )  # fmt: skip
  (drawn,) = ax.collections
  assert drawn.get_offsets().tolist() == [[1, 0.5], [5, 0.25], [10, -1], [100, 0]]
  # Beyond the span, the shade is that of its end.
  assert np.asarray(drawn.get_array()).tolist() == [0, 0, 0.5, 1]
  assert (ax.get_xscale(), ax.get_yscale()) == ('log', 'linear')
  assert [text.get_text() for text in ax.texts] == ['a$b']


def test_the_same_points_are_on_the_page():
  drawn = shaded.points_svg(
    XS, YS, SHADES, span=(0, 1), log='x', notes=['a', 'b', '<c>', 'd'], marked={2: '<c>'}, **LABELS
  )  # fmt: skip
  dots = re.findall(
    r'--w:([\d.]+)"><path class="shaded" transform="translate\(([\d.]+) ([\d.]+)\)', drawn
  )
  at = np.array(dots, float)
  np.testing.assert_array_equal(at[:4, 0], [0, 0, 0.5, 1])
  # One factor on the logarithmic axis is one distance; differences on the linear one are distances.
  assert at[2, 1] - at[0, 1] == pytest.approx(at[3, 1] - at[2, 1], abs=0.2)
  assert (at[2, 2] - at[0, 2]) / (at[2, 2] - at[3, 2]) == pytest.approx(1.5, rel=0.01)
  assert len(dots) == 4 + 5
  assert at[4:, 0].tolist() == [1, 0.75, 0.5, 0.25, 0]
  assert drawn.count('&lt;c&gt;') == 2
  assert 'z: 2' in drawn


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'xs': [1, 2]}, '2 xs, 4 ys and 4 shades'),
    ({'xs': [], 'ys': [], 'shades': []}, '0 xs'),
    ({'ys': [0, 1, np.nan, 1]}, 'y is nan at point 2'),
    ({'shades': [0, np.inf, 0, 0]}, 'shade is inf at point 1'),
    ({'log': 'y'}, r'y is -1\.0 at point 1'),
    ({'log': 'z'}, "log='z'"),
    ({'span': (1, 1)}, 'has no length'),
    ({'notes': ['a']}, '1 notes for 4 points'),
  ],
)
def test_points_that_have_no_place_are_refused(changes, message):
  given = {'xs': XS, 'ys': YS, 'shades': SHADES, 'span': (0, 1), 'notes': [*'abcd']} | changes
  with pytest.raises(ChartError, match=message):
    shaded.points_svg(**given, **LABELS)
