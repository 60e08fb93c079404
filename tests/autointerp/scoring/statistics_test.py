"""Correlation, AUROC and balanced accuracy against pair counts, plain loops and SciPy, and undefined values."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from mechjax.autointerp.scoring.statistics import (
  auroc,
  balanced_accuracy,
  pearson,
  share_explained,
)
from mechjax.errors import InterpretationError

few_values = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=12)
numbers = st.lists(st.integers(-50, 50), min_size=2, max_size=20)


@hypothesis.given(few_values, few_values)
def test_auroc_counts_pairs_and_ties_as_half(positives, negatives):
  pairs = [1.0 if p > q else 0.5 if p == q else 0.0 for p in positives for q in negatives]
  assert auroc(positives, negatives).value == pytest.approx(np.mean(pairs), abs=1e-12)


@hypothesis.given(few_values, few_values, st.sampled_from([0.25, 0.5]))
def test_balanced_accuracy_is_the_mean_of_two_shares(positives, negatives, threshold):
  right = sum(p > threshold for p in positives) / len(positives)
  left = sum(not q > threshold for q in negatives) / len(negatives)
  expected = (right + left) / 2
  assert balanced_accuracy(positives, negatives, threshold).value == pytest.approx(expected)


@hypothesis.given(numbers, st.randoms(use_true_random=False))
def test_correlation_equals_scipy(x, random):
  y = [random.randint(-50, 50) for _ in x]
  hypothesis.assume(len(set(x)) > 1 and len(set(y)) > 1)
  assert pearson(x, y).value == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)


def test_a_linear_map_does_not_change_a_correlation_however_small_or_large():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 50))
  expected = scipy.stats.pearsonr(x, y).statistic
  for scale in (1e-150, 1.0, 1e200):
    assert pearson(scale * x, 7 - 3 * y).value == pytest.approx(-expected, abs=1e-12)


@pytest.mark.parametrize(
  ('x', 'y', 'reason'),
  [
    ([1.0, 1.0], [0.0, 2.0], 'predictions are constant'),
    ([0.0, 0.0], [0.0, 2.0], 'predictions are constant'),
    ([4.5, 4.5 + 1e-15], [0.0, 2.0], 'predictions are constant'),
    ([0.0, 2.0], [3.0, 3.0], 'true activations are constant'),
    ([0.0], [3.0], '1 predictions; a correlation needs two'),
    ([], [], '0 predictions; a correlation needs two'),
  ],
)
def test_a_correlation_of_constants_is_undefined_with_a_reason(x, y, reason):
  found = pearson(x, y)
  assert math.isnan(found.value)
  assert found.reason == reason


@pytest.mark.parametrize('function', [auroc, balanced_accuracy])
def test_without_a_class_there_is_no_score_but_a_reason(function):
  cases = {
    'no positives': ([], [1.0]),
    'no negatives': ([1.0], []),
    'no positives and no negatives': ([], []),
  }
  for reason, classes in cases.items():
    found = function(*classes)
    assert math.isnan(found.value)
    assert found.reason == reason


def test_the_explained_share_is_that_of_the_best_line_and_not_centred():
  rng = np.random.default_rng(0)
  e = rng.uniform(0, 9, 40)
  a = np.maximum(0, e - 4 + rng.normal(size=40))
  line = np.polyval(np.polyfit(e, a, 1), e)
  expected = 1 - np.mean((a - line) ** 2) / np.mean(a**2)
  assert share_explained(e, a).value == pytest.approx(expected, abs=1e-12)
  best_constant = 1 - np.var(a) / np.mean(a**2)
  for useless in (-e, np.ones(40)):
    assert share_explained(useless, a).value == pytest.approx(best_constant, abs=1e-12)
  assert math.isnan(share_explained(e, 0 * e).value)
  assert math.isnan(share_explained([], []).value)


@pytest.mark.parametrize(
  'call',
  [
    lambda: pearson([1.0, 2.0], [1.0]),
    lambda: pearson([1.0, math.nan], [1.0, 2.0]),
    lambda: pearson([1.0, 2.0], [1.0, math.inf]),
    lambda: auroc([math.nan], [1.0]),
    lambda: balanced_accuracy([1.0], [math.nan]),
    lambda: auroc(np.ones((2, 2)), [1.0]),
  ],
)
def test_numbers_that_are_not_finite_and_two_lengths_are_errors(call):
  with pytest.raises(InterpretationError):
    call()
