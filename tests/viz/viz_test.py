"""Charts and pages: all given data are drawn, whatever the strings contain."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.viz import charts, page, scale
from mechjax.viz.tokens import show_blanks

NASTY = '<b>&"\'$x_1$'


class Reader(HTMLParser):
  """Collects texts and tags as a browser would see them."""

  def __init__(self, content: str):
    super().__init__()
    self.texts, self.tags, self.addresses = [], [], []
    self.feed(content)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [value for name, value in attrs if name in ('src', 'href')]

  def handle_data(self, data):
    self.texts.append(data)


def whole_page() -> str:
  table = page.words(
    [[NASTY, 'b']], [[0.25, 1.0]], rows=['0'], columns=[NASTY, 'y'], corner='layer', unit='p'
  )
  bars = page.bars([NASTY, 'right'], [-1.0, 0.5], unit='nats')
  return page.page(NASTY, NASTY, [page.section(NASTY, NASTY, table + bars)], NASTY)


def test_a_page_shows_every_text_as_it_was_given():
  read = Reader(whole_page())
  # Title twice (the head has one too), lead, heading, sentence, cell, column, bar, footer.
  assert read.texts.count(NASTY) == 9
  assert 'script' not in read.tags


def test_a_page_needs_nothing_from_elsewhere_and_knows_the_dark():
  content = whole_page()
  assert not Reader(content).addresses
  assert not re.search(r'https?:|url\(|@import', content)
  assert '@media (prefers-color-scheme: dark)' in content


def test_bars_of_a_page_start_at_a_common_zero_and_keep_their_proportions():
  content = page.bars(['a', 'b', 'c'], [-2.0, 1.0, 0.5], unit='nats')
  bars = [
    (float(left), float(width))
    for left, width in re.findall(r'left:([\d.]+)%;width:([\d.]+)%', content)
  ]
  (a_left, a_width), (b_left, b_width), (c_left, c_width) = bars
  assert a_left + a_width == pytest.approx(b_left, abs=0.02) == pytest.approx(c_left)
  assert a_width == pytest.approx(2 * b_width, abs=0.02)
  assert b_width == pytest.approx(2 * c_width, abs=0.02)


def test_a_chart_draws_each_bar_as_long_as_its_value_and_writes_the_number():
  ax = charts.figure(4, 3).subplots()
  charts.bars(ax, ['$a$', 'b'], [-2.0, 1.0], title='t', xlabel='nats')
  assert [bar.get_width() for bar in ax.patches] == [-2.0, 1.0]
  assert [text.get_text() for text in ax.texts] == ['-2.00', '1.00']
  assert [label.get_text() for label in ax.get_yticklabels()] == ['$a$', 'b']
  assert ax.get_xlabel() == 'nats'


def test_an_outlier_is_cut_and_marked_but_keeps_its_number():
  values = [-15.0, -2.0, 1.0]
  ax = charts.figure(4, 3).subplots()
  charts.bars(ax, 'abc', values, title='t', xlabel='x', limit=scale.limit(values))
  assert [bar.get_width() for bar in ax.patches] == pytest.approx([-2.4, -2.0, 1.0])
  assert [bar.get_hatch() for bar in ax.patches] == ['////', None, None]
  assert ax.texts[0].get_text() == '-15.00'
  content = page.bars('abc', values, unit='nats', limit=scale.limit(values))
  assert content.count('class="down cut"') == 1
  assert '-15.000' in content


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_at_most_one_bar_is_ever_cut(values):
  at = scale.limit(values)
  assert sum(scale.cut(v, at) != v for v in values) <= 1


def test_words_are_drawn_in_their_cells_and_saved(tmp_path):
  fig = charts.figure(4, 3)
  ax = fig.subplots()
  charts.words(
    ax, [['$a$', 'b'], ['c', '漢']], [[0, 1], [0.5, 0.2]], rows='01', columns='xy', title='t',
    xlabel='position', ylabel='layer', weight='p',
  )  # fmt: skip
  assert [(t.get_position(), t.get_text()) for t in ax.texts] == [
    ((0, 0), '$a$'), ((1, 0), 'b'), ((0, 1), 'c'), ((1, 1), '□'),
  ]  # fmt: skip
  charts.save(fig, tmp_path / 'words.png')
  assert (tmp_path / 'words.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'


def test_blanks_and_unprintable_characters_can_be_seen():
  assert show_blanks(' Paris') == '␣Paris'
  assert show_blanks('\n\t\x07') == '↵⇥\\x07'


@given(st.text())
def test_a_visible_token_is_printable(text):
  assert show_blanks(text).isprintable()
