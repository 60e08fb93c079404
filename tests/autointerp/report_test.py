"""Reports of scores against NumPy: means, standard errors, paired differences, and the sentences made from them."""

import math

import numpy as np
import pytest

from mechjax.autointerp.record import Score
from mechjax.autointerp.report import Report
from mechjax.errors import InterpretationError

OWN = [0.30, 0.42, 0.36, math.nan, 0.40]
SHUFFLED = [0.02, 0.10, -0.04, 0.01, 0.05]
TABLE = [0.62, 0.70, 0.61, 0.66, 0.75]


def make(values, method, control, scorer='simulation', **others):
  return [
    Score(
      k, method, scorer, control, k, v, 100, reason='constant' if math.isnan(v) else '', **others
    )
    for k, v in enumerate(values)
  ]


SCORES = [
  *make(OWN, 'highlights', 'own', n_failed=2, more={'mass': 0.5}),
  *make(SHUFFLED, 'highlights', 'shuffled'),
  *make(TABLE, 'table', 'table'),
  *make([0.1, 0.1], 'none', 'own', 'intruder'),
]


def find(items, **wanted):
  (item,) = [i for i in items if all(getattr(i, k) == v for k, v in wanted.items())]
  return item


def test_rows_have_means_over_defined_scores_and_count_the_rest():
  row = find(Report(SCORES).rows, method='highlights', control='own')
  defined = np.array(OWN)[~np.isnan(OWN)]
  assert row.mean == pytest.approx(np.mean(defined))
  assert row.standard_error == pytest.approx(np.std(defined, ddof=1) / 2)
  assert row.median == pytest.approx(np.median(defined))
  assert (row.n, row.n_undefined, row.n_failed) == (4, 1, 10)


@pytest.mark.parametrize(('control', 'others'), [('shuffled', SHUFFLED), ('table', TABLE)])
def test_differences_are_paired_by_latent(control, others):
  d = find(Report(SCORES[::-1]).differences, control=control, scorer='simulation')
  pairs = np.array([(a, b) for a, b in zip(OWN, others) if not math.isnan(a)])
  gaps = pairs[:, 0] - pairs[:, 1]
  assert d.difference == pytest.approx(gaps.mean())
  assert d.standard_error == pytest.approx(gaps.std(ddof=1) / 2)
  assert (d.own, d.other) == pytest.approx(tuple(pairs.mean(0)))
  assert d.n == 4


def test_the_report_says_where_the_token_table_predicts_better_than_the_model():
  text = str(Report(SCORES))
  assert "simulation: the token table predicts better than the explanations by 'highlights'" in text
  assert '-0.300 ± 0.022 over 4 latents (0.370 against 0.670)' in text
  assert (
    "the explanations by 'highlights' predict better than explanations of other latents" in text
  )


def test_the_report_says_so_where_there_is_no_clear_difference():
  alike = [*make([0.5, 0.3, 0.6], 'levels', 'own'), *make([0.3, 0.5, 0.6], 'levels', 'shuffled')]
  (sentence,) = Report(alike).conclusions
  assert 'do not differ clearly from explanations of other latents' in sentence
  better = [*make([0.9, 0.8], 'levels', 'own'), *make([0.3, 0.1], 'table', 'table')]
  assert "the explanations by 'levels' predict better than the token table" in str(Report(better))
  worse = [*make([0.1, 0.2], 'levels', 'own'), *make([0.8, 0.8], 'levels', 'shuffled')]
  assert 'explanations of other latents predict better than' in str(Report(worse))


def test_one_latent_has_no_standard_error_and_no_clear_difference():
  report = Report([*make([0.5], 'levels', 'own'), *make([0.1], 'levels', 'shuffled')])
  assert math.isnan(report.rows[0].standard_error)
  assert 'do not differ clearly' in report.conclusions[0]


def test_undefined_scores_alone_have_a_row_and_no_difference():
  report = Report([*make([math.nan] * 2, 'levels', 'own'), *make([0.1] * 2, 'levels', 'shuffled')])
  assert math.isnan(report.rows[0].mean)
  assert (report.rows[0].n, report.rows[0].n_undefined) == (0, 2)
  assert report.differences == ()


def test_the_text_has_a_line_for_each_scorer_method_and_control():
  lines = str(Report(SCORES)).splitlines()
  assert [line.split()[:3] for line in lines[2:6]] == [
    ['simulation', 'highlights', 'own'],
    ['simulation', 'highlights', 'shuffled'],
    ['simulation', 'table', 'table'],
    ['intruder', 'none', 'own'],
  ]
  assert lines[2].split()[3:] == ['0.370', '0.026', '0.380', '4', '1', '10']


def test_a_further_figure_can_be_reported():
  report = Report(SCORES, 'mass')
  assert report.rows[0].mean == pytest.approx(0.5)
  assert report.rows[1].n == 0


def test_scores_of_an_iterator_are_all_reported():
  assert str(Report(iter(SCORES))) == str(Report(SCORES))


@pytest.mark.parametrize(
  ('scores', 'metric', 'message'),
  [
    ([], 'value', 'without scores'),
    (SCORES + SCORES[:1], 'value', 'two scores of one latent'),
    (SCORES, 'mas', 'mass'),
  ],
)
def test_scores_that_do_not_make_a_report_are_refused(scores, metric, message):
  with pytest.raises(InterpretationError, match=message):
    Report(scores, metric)


@pytest.mark.parametrize(
  'figures', [{'value': math.inf}, {'value': '1'}, {'value': 0.5, 'more': {'mass': None}}]
)
def test_a_score_that_is_not_a_number_is_refused_with_its_latent(figures):
  with pytest.raises(InterpretationError, match='latent 7'):
    Score(7, 'highlights', 'detection', 'own', 7, n=4, **figures)
