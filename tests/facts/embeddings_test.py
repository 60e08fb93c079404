"""Cosines against loops over pairs, and offsets that are planted."""

import numpy as np
import pytest

from mechjax.errors import FactsError
from mechjax.facts import mean_cosine, measure_offset

R = np.random.default_rng(0)
ROWS = R.standard_normal((30, 8)) + 1


def test_the_mean_cosine_is_that_of_all_pairs():
  unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
  pairs = [unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j]
  assert mean_cosine(ROWS) == pytest.approx(np.mean(pairs))
  assert mean_cosine(np.eye(5)) == pytest.approx(0, abs=1e-12)
  assert mean_cosine(np.outer([1, 2, 3], [1, -1])) == pytest.approx(1)
  wide = R.standard_normal((2000, 50)) + 10
  assert mean_cosine(wide) > 0.95
  assert abs(mean_cosine(wide - wide.mean(0))) < 0.01


def test_an_offset_of_all_pairs_explains_everything_and_none_at_all_less_than_nothing():
  offset = R.standard_normal(8)
  found = measure_offset(ROWS, ROWS + offset)
  assert found.explained == pytest.approx(1)
  assert found.chance < 0.5
  apart = R.standard_normal((4000, 3))
  alone = measure_offset(np.zeros_like(apart[:5]), np.concatenate([np.eye(3), np.eye(3)])[:5])
  differences = np.concatenate([np.eye(3), np.eye(3)])[:5]
  others = [np.delete(differences, i, 0).mean(0) for i in range(5)]
  expected = 1 - np.square(differences - others).sum() / np.square(differences).sum()
  assert alone.explained == alone.chance == pytest.approx(expected)
  none = measure_offset(np.zeros_like(apart), apart, draws=1)
  assert none.explained == pytest.approx(0, abs=2e-3)


def test_a_difference_of_the_lists_alone_is_as_large_in_another_order():
  found = measure_offset(R.standard_normal((200, 8)), R.standard_normal((200, 8)) + 3)
  assert found.explained > 0.7
  assert found.explained == pytest.approx(found.chance, abs=0.02)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: mean_cosine(ROWS[:1]), 'one row has no pair'),
    (lambda: mean_cosine(ROWS * (np.arange(30) != 4)[:, None]), 'row 4 is zero'),
    (lambda: mean_cosine(ROWS[0]), 'rows has shape'),
    (lambda: measure_offset(ROWS, ROWS[1:]), 'expected three pairs or more'),
    (lambda: measure_offset(ROWS[:2], ROWS[1:3]), 'expected three pairs or more'),
    (lambda: measure_offset(ROWS, ROWS), 'are equal'),
    (lambda: measure_offset(ROWS, ROWS + np.nan), 'NaN or infinity in targets'),
    (lambda: measure_offset(ROWS, ROWS + 1, draws=0), 'draws=0'),
    (lambda: measure_offset(ROWS, ROWS + 1, seed=None), 'seed=None'),
  ],
)
def test_tables_without_pairs_are_refused(call, message):
  with pytest.raises(FactsError, match=message):
    call()
