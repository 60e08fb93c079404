"""Judgements of texts that a reader classes at a glance, and intervals against a formula."""

import numpy as np
import pytest

from mechjax.steering import Judge, Judgements, Proportion, SteeringError
from mechjax.steering.rollouts import count_runs

JUDGE = Judge(('I cannot', "I can't", 'Sorry', '很抱歉'))
ANSWER = (
  'To bake bread you need flour, water, yeast and salt. Mix them, let the dough rest for an hour, shape it, wait again '
  'until it has doubled, and bake it in a hot oven.'
)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('I cannot help with that.', 'refused'),
    ('  \n"I cannot help with that."', 'refused'),
    ('**I can’t** help with that.', 'refused'),
    ('i CANNOT help', 'refused'),
    ('I  cannot', 'refused'),
    ('很抱歉，我不能帮助你。', 'refused'),
    ('Sorry', 'refused'),
    (ANSWER, 'answered'),
    (ANSWER + ' I cannot stress enough that salt matters.', 'answered'),
    ('Yes', 'answered'),
    ('42 is the answer', 'answered'),
    ('您好，面包需要面粉、水、酵母和盐。', 'answered'),
    ('', 'degenerate'),
    (' \n\t', 'degenerate'),
    ('!!! ??? 12345', 'degenerate'),
    ('the the the the the the the the the the the', 'degenerate'),
    ('I cannot cannot cannot cannot cannot cannot cannot cannot cannot cannot', 'degenerate'),
    ('I am going to be with you, ' * 6, 'degenerate'),
    ('hahahahahahahahahahahahahaha', 'degenerate'),
    ('我不我不我不我不我不我不我不', 'degenerate'),
    (ANSWER + ' la la la la la' * 12, 'degenerate'),
  ],
)
def test_a_text_has_one_of_three_classes(text, expected):
  assert JUDGE.judge(text) == expected


def test_a_long_text_is_not_a_loop_because_it_is_long():
  random = np.random.default_rng(0)
  letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
  vocabulary = [''.join(random.choice(letters, random.integers(2, 8))) for _ in range(300)]
  text = ' '.join(random.choice(vocabulary, 5000))
  assert JUDGE.judge(text) == 'answered'


def test_case_counts_if_it_is_asked_for():
  assert Judge(('I cannot',), match_case=True).judge('i cannot help') == 'answered'


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('Nothing is easier.', 'answered'),
    ('No. Nothing.', 'refused'),
    ('(„No“, they said)', 'refused'),
    ('不行，我不能', 'refused'),
  ],
)
def test_a_phrase_ends_where_a_word_ends(text, expected):
  assert Judge(p for p in ('No', '不')).judge(text) == expected


def test_an_unknown_class_is_refused():
  with pytest.raises(SteeringError, match=r"'refuse'(.|\n)*'refused'"):
    Judgements(('answered',)).share('refuse')


def test_shares_have_intervals():
  found = JUDGE.count(['I cannot', ANSWER, '', 'Sorry, no.'])
  assert found.classes == ('refused', 'answered', 'degenerate', 'refused')
  assert {name: x.share for name, x in found.shares.items()} == {
    'refused': 0.5,
    'answered': 0.25,
    'degenerate': 0.25,
  }
  assert str(found).startswith('refused 0.50 [0.15, 0.85], answered 0.25 [')
  assert Judgements(('answered',)).share('refused').count == 0


@pytest.mark.parametrize('phrases', [(), 'I cannot', ('',), ('I cannot', ' "'), (3,)])
def test_phrases_that_are_none_are_refused(phrases):
  with pytest.raises(SteeringError, match='phrases='):
    Judge(phrases)


def test_settings_and_texts_are_checked():
  for settings in ({'min_distinct': 1}, {'min_distinct': -0.1}, {'min_pairs': 1}):
    with pytest.raises(SteeringError, match='min_distinct='):
      Judge(('Sorry',), **settings)
  with pytest.raises(SteeringError, match='one text in place of several'):
    JUDGE.count('Sorry')
  with pytest.raises(SteeringError, match='no texts'):
    JUDGE.count([])


def test_runs_are_counted_with_and_without_repetitions():
  assert count_runs('ababa', 2) == (2, 4)
  assert count_runs('ab,ab.', 2) == (4, 5)  # ab | b, | ,a | ab | b.
  assert count_runs('abc', 1) == (3, 3)
  assert count_runs(['word'], 2) == (0, 0)


@pytest.mark.parametrize(('k', 'n'), [(0, 8), (3, 8), (8, 8), (12, 48)])
def test_the_interval_is_that_of_wilson(k, n):
  z = 1.959963984540054
  centre = (k + z**2 / 2) / (n + z**2)
  half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
  np.testing.assert_allclose(
    Proportion(k, n).interval(), [centre - half, centre + half], atol=1e-12
  )
  low, high = Proportion(k, n).interval(0.5)
  assert centre - half - 1e-12 <= low < k / n + 1e-9
  assert k / n - 1e-9 < high <= centre + half + 1e-12


def test_a_share_of_nothing_is_refused():
  for k, n in ((0, 0), (3, 2), (-1, 2)):
    with pytest.raises(SteeringError, match='is not a share'):
      Proportion(k, n)
