"""Pictures of explanations: points, means and lines at their numbers, colours and bars at the activations' heights."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from mechjax.autointerp.record import Excerpt, Explanation, Score
from mechjax.viz import charts, explanations, page, predictions
from mechjax.viz.logs import ChartError
from tests.viz import browser

pytestmark = pytest.mark.slow
VALUES = {
  ('a', 'own'): [0.5, 0.9, 0.7, math.nan],
  ('a', 'shuffled'): [0.1, -0.1, 0.3, 0.0],
  ('b', 'own'): [0.25],
  ('table', 'table'): [0.6, 0.8],
  ('table', 'table_shuffled'): [0.05, 0.15],
}
SCORES = [
  Score(latent, method, 'simulation', control, latent, value, 9, reason='why')
  for (method, control), values in VALUES.items()
  for latent, value in enumerate(values)
]
OTHER = Score(0, 'c', 'detection', 'own', 0, 0.5, 9)


def draw(scores=SCORES):
  ax = charts.figure(7, 4).subplots()
  explanations.strip(ax, [*scores, OTHER], scorer='simulation', title='t', ylabel='r')
  return ax


def test_each_column_has_its_points_its_mean_and_its_standard_error():
  ax = draw()
  points = [line for line in ax.get_lines() if line.get_marker() == 'o']
  means = {c.lines[0].get_xdata()[0]: c for c in ax.containers}
  for place, values in enumerate(VALUES.values()):
    defined = [v for v in values if not math.isnan(v)]
    assert points[place].get_ydata().tolist() == defined
    assert np.abs(points[place].get_xdata() - place).max() < 0.3
    assert means[place].lines[0].get_ydata()[0] == pytest.approx(np.mean(defined))
    (bar,) = means[place].lines[2][0].get_segments()
    error = stats.sem(defined) if len(defined) > 1 else 0.0
    assert bar[:, 1] == pytest.approx([np.mean(defined) - error, np.mean(defined) + error])
  labels = [text.get_text().split('\n') for text in ax.get_xticklabels()]
  assert labels == [
    ['a', '', 'n = 3, 1 NaN'], ['a', 'shuffled', 'n = 4'], ['b', '', 'n = 1'],
    ['token table', '', 'n = 2'], ['token table', 'shuffled', 'n = 2'],
  ]  # fmt: skip


def test_a_line_at_the_shuffled_mean_crosses_the_columns_of_its_explainer():
  dashed = [line for line in draw().get_lines() if line.get_linestyle() == '--']
  found = [(*line.get_xdata(), line.get_ydata()[0]) for line in dashed]
  assert [(round(left), round(right)) for left, right, _ in found] == [(0, 1), (3, 4)]
  assert [height for *_, height in found] == pytest.approx([np.mean([0.1, -0.1, 0.3, 0]), 0.1])


def test_neighbours_in_height_are_moved_apart():
  many = [Score(n, 'a', 'simulation', 'own', n, 0.5 + 1e-4 * n, 9) for n in range(40)]
  (points, *_) = draw(many).get_lines()
  gaps = np.abs(np.diff(points.get_xdata()))
  assert gaps.min() > 0.1


def test_the_page_has_the_same_points_at_the_same_places():
  drawn = explanations.strip_svg([*SCORES, OTHER], scorer='simulation', ylabel='<r>')
  marks = re.findall(
    r'translate\([\d.]+ ([\d.]+)\)" d="[^"]*"><title>latent (\d+)\n([^<]*)<', drawn
  )
  values = [v for own in VALUES.values() for v in own if not math.isnan(v)]
  assert [float(note.split(': ')[1]) for *_, note in marks] == pytest.approx(values, abs=5e-4)
  # Equal differences of the scores are equal distances on the page.
  slope, offset = np.polyfit(values, [float(height) for height, *_ in marks], 1)
  np.testing.assert_allclose(
    [float(height) for height, *_ in marks], slope * np.array(values) + offset, atol=0.1
  )
  assert slope < 0
  (line, other) = re.findall(r'class="diagonal" stroke-dasharray="5 4" d="M[\d.]+ ([\d.]+)', drawn)
  assert float(line) == pytest.approx(slope * 0.075 + offset, abs=0.1)
  assert float(other) == pytest.approx(slope * 0.1 + offset, abs=0.1)
  assert '&lt;r&gt;' in drawn


def test_names_of_explainers_are_inert_and_short():
  name = '<script>$x$\u202e' + 'x' * 60
  found = [Score(n, name, 'simulation', 'own', n, 0.5, 9) for n in range(2)]
  drawn = explanations.strip_svg(found, scorer='simulation')
  assert '<script' not in drawn
  assert '\u202e' not in drawn
  (label,) = [text.get_text().split('\n')[0] for text in draw(found).get_xticklabels()]
  assert label.startswith('<script>$x$')
  assert len(label) <= 18


@pytest.mark.parametrize(
  ('scores', 'message'),
  [
    ([], "no score by 'simulation'"),
    ([Score(0, 'a', 'simulation', 'own', 0, math.nan, 9, reason='r')], 'undefined'),
    ([Score(0, 'a', 'simulation', 'other', 0, 0.5, 9)], "'other'"),
  ],
)
def test_scores_that_cannot_be_drawn_are_refused(scores, message):
  for picture in (draw, lambda s: explanations.strip_svg(s, scorer='simulation')):
    with pytest.raises(ChartError, match=message):
      picture(scores)


# --- texts -----------------------------------------------------------------------------------------------------

NASTY = '</p><img src=x onerror=alert(1)>"\u202e'


def make_score(predicted, activations=((0, 1, 4), (0, 8, 0)), value=0.5):
  excerpts = tuple(
    Excerpt(n, 0, np.arange(3), (' a', NASTY, '$b'), np.array(row, np.float32))
    for n, row in enumerate(activations)
  )
  return Score(
    3, 'a', 'simulation', 'own', 3, value, 6, reason='r' * math.isnan(value),
    predicted=tuple(map(np.array, predicted)), excerpts=excerpts,
  )  # fmt: skip


SCORE = make_score([[0, 0.25, 1], [0.125, math.nan, 0]])


def test_excerpts_are_paired_with_their_predictions_the_strongest_first():
  first, second = predictions.align(SCORE)
  assert (first.excerpt, second.excerpt) == SCORE.excerpts[::-1]
  np.testing.assert_array_equal(first.true, [0, 1, 0])
  np.testing.assert_array_equal(second.true, [0, 0.125, 0.5])
  np.testing.assert_array_equal(first.predicted, [0.125, math.nan, 0])
  assert predictions.align(SCORE, maximum=16)[0].true.max() == 0.5


@pytest.mark.parametrize(
  ('predicted', 'message'),
  [
    ([[0, 0, 0]], '1 predictions for 2 excerpts'),
    ([[0, 0, 0], [0, 0]], r'shape \(2,\) for an excerpt of 3 tokens'),
    ([[0, 0, 0], [0, 0, 9]], 'activation of 9'),
    ([[0, 0, 0], [0, 0, -0.1]], r'activation of -0\.1'),
    ([[0, 0, 0], [0, 0, math.inf]], 'activation of inf'),
  ],
)
def test_predictions_that_do_not_fit_are_refused(predicted, message):
  with pytest.raises(ChartError, match=message):
    predictions.align(make_score(predicted))


def test_a_section_needs_predictions():
  with pytest.raises(ChartError, match='no predicted activations'):
    predictions.section(OTHER)


@browser.needed
@pytest.mark.parametrize('dark', [False, True])
def test_a_section_shows_texts_with_colours_and_bars_and_runs_nothing(tmp_path, dark):
  body = predictions.section(SCORE, explanation=Explanation(3, 'a', NASTY))
  script = """(() => {
    const spans = [...document.querySelectorAll('.both')];
    const size = (s) => parseFloat(getComputedStyle(s).backgroundSize.split('%')[1]);
    return {
      texts: spans.map((s) => s.textContent),
      colours: spans.map((s) => getComputedStyle(s).backgroundImage.split('linear-gradient').at(-1)),
      bars: spans.map((s) => getComputedStyle(s).backgroundSize.split(', ')[0].split(' ')[1]),
      hatched: spans.map((s) => getComputedStyle(s).backgroundImage.includes('repeating')),
      images: document.images.length, lead: document.querySelector('section p').textContent,
      fits: [innerWidth, document.documentElement.scrollWidth],
    };
  })()"""
  content = page.page('t', 'l', [body], 'f')
  seen = browser.measure(tmp_path, content, script, width=500, dark=dark)
  assert seen['texts'] == [' a', NASTY.replace('\u202e', '\\u202e'), '$b'] * 2
  assert seen['images'] == 0
  assert NASTY.replace('\u202e', '\\u202e') in seen['lead']
  assert seen['fits'][0] == seen['fits'][1]
  # The strongest excerpt is first: only its second token is active, and that prediction failed.
  paper, strong, weak = (seen['colours'][i] for i in (0, 1, 5))
  assert len({paper, strong, weak, seen['colours'][4]}) == 4
  assert seen['colours'][2] == seen['colours'][3] == paper
  assert seen['hatched'] == [False, True, False, False, False, False]
  heights = [float(bar.removesuffix('px')) for bar in seen['bars']]
  assert heights[5] > 8
  for i, share in ((0, 0.125), (2, 0), (3, 0), (4, 0.25)):
    assert heights[i] == pytest.approx(share * heights[5], abs=0.1)


def test_a_figure_has_a_colour_and_a_bar_for_each_token():
  fig = charts.figure(6, 1.4)
  ax = fig.subplots()
  (one, two) = predictions.align(SCORE)
  predictions.draw_text(ax, two, title='t')
  colours, bars = ax.patches[::2], ax.patches[1::2]
  assert [patch.get_alpha() for patch in colours] == pytest.approx(0.7 * two.true)
  assert [patch.get_width() for patch in colours] == [2, len(NASTY) - 1 + len('\\u202e'), 2]
  heights = np.array([patch.get_height() for patch in bars])
  np.testing.assert_allclose(heights / heights.max(), two.predicted)
  letters = ''.join(text.get_text() for text in ax.texts)
  assert letters == ' a' + NASTY.replace('\u202e', '\\u202e') + '$b'
  other = charts.figure(6, 1.4).subplots()
  predictions.draw_text(other, one, title='t')
  assert [patch.get_hatch() is not None for patch in other.patches[1::2]] == [False, True, False]


def test_a_long_text_is_broken_between_tokens():
  excerpt = Excerpt(0, 0, np.arange(40), (' seven777',) * 40, np.ones(40, np.float32))
  score = Score(
    3, 'a', 'simulation', 'own', 3, 0.5, 6, predicted=(np.ones(40),), excerpts=(excerpt,)
  )
  fig = charts.figure(6, 3)
  ax = fig.subplots()
  predictions.draw_text(ax, predictions.align(score)[0], title='t')
  ends = np.array([patch.get_x() + patch.get_width() for patch in ax.patches])
  assert ends.max() <= ax.get_xlim()[1]
  assert len({patch.get_y() for patch in ax.patches[::2]}) > 1
