"""Vectors from activations, against NumPy written out, closed forms and Gaussians whose means are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SteeringError
from mechjax.steering import (
  Pair,
  diff_means,
  difference,
  draw_directions,
  mean_difference,
  principal,
  vectors,
)


@pytest.fixture
def random():
  return np.random.default_rng(0)


def test_a_pair_is_filled_on_the_right_to_one_length():
  pair = Pair.of([1, 5, 6, 7], [1, 5], pad=9)
  assert pair.plus.tolist() == [[1, 5, 6, 7]]
  assert pair.minus.tolist() == [[1, 5, 9, 9]]
  assert pair.plus.dtype == pair.minus.dtype == np.int32


def test_a_beginning_is_put_before_the_prompts_that_lack_it():
  pair = Pair.of([5, 6], [0, 7], pad=9, bos=0)
  assert pair.plus.tolist() == [[0, 5, 6]]
  assert pair.minus.tolist() == [[0, 7, 9]]


@pytest.mark.parametrize(
  ('plus', 'minus', 'message'),
  [
    ([5, 6], [7, 6], 'begin with the tokens 5 and 7'),
    ([], [1], 'plus has shape'),
    ([1], [[1, 2]], 'minus has shape'),
    ([1.0], [1], 'float64'),
    ([1, 2], [1, 2], 'the prompts are equal'),
    ([1, 9], [1], 'the prompts are equal'),
  ],
)
def test_prompts_that_have_no_difference_to_add_are_refused(plus, minus, message):
  with pytest.raises(SteeringError, match=message):
    Pair.of(plus, minus, pad=9)


def test_the_difference_keeps_digits_that_float32_would_lose(random):
  plus = (1000 + random.standard_normal((3, 4))).astype(np.float32)
  minus = (1000 + random.standard_normal((3, 4))).astype(np.float32)
  found = difference(jnp.asarray(plus), jnp.asarray(minus))
  np.testing.assert_array_equal(found, plus.astype(np.float64) - minus.astype(np.float64))


def test_the_mean_difference_is_that_of_a_loop_over_pairs(random):
  plus, minus = random.standard_normal((2, 7, 5))
  expected = sum(p - m for p, m in zip(plus, minus)) / 7
  np.testing.assert_allclose(mean_difference(plus, minus), expected, rtol=1e-12)
  acts = random.standard_normal((4, 6, 5))
  found = vectors.at_each(acts, np.array([0, 5, 2, 1]))
  np.testing.assert_array_equal(found, np.stack([acts[0, 0], acts[1, 5], acts[2, 2], acts[3, 1]]))


def test_means_leave_out_padding_and_weigh_every_token_alike(random):
  short, long = random.standard_normal((2, 3, 4)), random.standard_normal((1, 6, 4))
  masks = [np.array([[0, 1, 1], [0, 1, 0]], bool), np.array([[0, 1, 1, 1, 1, 1]], bool)]
  tokens = [short[0, 1], short[0, 2], short[1, 1], *long[0, 1:]]
  found = vectors.mean([jnp.asarray(short), long], masks)
  np.testing.assert_allclose(found, np.mean(tokens, 0), rtol=0, atol=1e-6)
  short[0, 0] = np.nan  # padding may hold anything
  np.testing.assert_allclose(vectors.mean([short, long], masks), np.mean(tokens, 0), rtol=1e-12)


def test_a_mean_of_many_tokens_far_from_zero_keeps_its_digits():
  acts = np.full((200_000, 2), 4096.0, np.float32)
  acts[:, 1] += 0.25
  np.testing.assert_array_equal(vectors.mean(acts), [4096.0, 4096.25])


def test_diff_means_of_two_gaussians_is_the_direction_between_their_means(random):
  centre, other = np.array([3.0, 0.0, -4.0, 0.0]), np.array([0.0, 0.0, 0.0, 12.0])
  plus = centre + random.standard_normal((40, 250, 4))
  minus = other + random.standard_normal((40, 250, 4))
  found = diff_means(plus, list(minus))
  expected = (centre - other) / 13
  np.testing.assert_allclose(found.vector, expected, rtol=0, atol=0.01)
  assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-12)
  largest = max(float(found.vector @ h) for h in plus.reshape(-1, 4))
  assert found.scale == pytest.approx(largest, rel=1e-12)


def test_the_scale_is_taken_from_tokens_that_count():
  plus, mask = np.zeros((1, 3, 2)), np.array([[False, True, True]])
  plus[0] = [[100.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
  found = diff_means(plus, np.zeros((4, 2)), mask)
  assert found.vector.tolist() == [1, 0]
  assert found.scale == 2


def test_the_principal_direction_explains_most_and_points_along_the_mean(random):
  deltas = random.standard_normal((30, 6)) * [1, 5, 1, 1, 1, 1] + [0, 2, 0, 0, 0, 0]
  values, directions = np.linalg.eigh(deltas.T @ deltas)
  expected = directions[:, values.argmax()]
  found = principal(deltas)
  np.testing.assert_allclose(found, expected * np.sign(expected @ deltas.mean(0)), atol=1e-9)
  np.testing.assert_allclose(principal(-deltas), -found, atol=1e-9)
  np.testing.assert_allclose(principal(deltas[::-1]), found, atol=1e-9)


def test_without_a_mean_the_largest_entry_of_the_principal_direction_is_positive():
  v = np.array([1.0, -2.0, 0.5])
  found = principal(np.stack([v, -v]))
  np.testing.assert_allclose(found, -v / np.linalg.norm(v), atol=1e-12)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: difference(np.ones((2, 3)), np.ones((3, 3))), 'activations of shapes'),
    (lambda: difference(np.ones((1, 2, 3)), np.ones((1, 2, 3))), r'\[T, D\]'),
    (lambda: difference(np.full((2, 3), np.nan), np.ones((2, 3))), 'plus contains NaN'),
    (lambda: mean_difference(np.ones((0, 3)), np.ones((0, 3))), r'\[B, D\]'),
    (lambda: vectors.mean(np.ones((2, 3)), np.zeros(2, bool)), 'no token counts'),
    (lambda: vectors.mean([]), 'no token counts'),
    (lambda: vectors.mean(np.ones((2, 3)), np.ones(3, bool)), 'batch 0 has activations'),
    (lambda: vectors.mean(np.ones((2, 3)), np.ones(2)), 'a mask of float64'),
    (lambda: vectors.mean([np.ones((2, 3))], [None, None]), '2 masks for 1'),
    (lambda: vectors.mean([np.ones((2, 3)), np.ones((2, 4))]), 'widths 3 and 4'),
    (lambda: vectors.mean(np.full((2, 3), np.inf)), 'NaN or infinity'),
    (lambda: diff_means(np.ones((2, 3)), np.ones((4, 3))), 'the same mean'),
    (lambda: diff_means(-np.ones((2, 3)), np.full((2, 3), -9.0)), 'no scale'),
    (lambda: diff_means(np.ones((2, 8)), np.ones((2, 1))), 'width 8 and negative ones of 1'),
    (lambda: Pair.of([1, 2**33], [1, 3], pad=0), 'not tokens'),
    (lambda: Pair.of([1, -2], [1, 3], pad=0), 'ids from -2'),
    (lambda: draw_directions(np.ones((5, 8)), 1), '1 axes'),
    (lambda: principal(np.zeros((3, 4))), 'without a direction'),
    (lambda: principal(np.ones(4)), 'without a direction'),
    (lambda: vectors.at_each(np.ones((2, 3, 4)), np.array([0, 3])), 'columns 0 to 3 of 3'),
  ],
)
def test_activations_that_give_no_vector_are_refused(make, message):
  with pytest.raises(SteeringError, match=message):
    make()


def test_texts_given_by_a_generator_are_read_once_and_used_twice():
  plus, minus = np.random.default_rng(0).standard_normal((2, 6, 4)) + [[[1.0]], [[0.0]]]
  found = diff_means((x for x in plus[:, None]), minus)
  np.testing.assert_array_equal(found.vector, diff_means(plus, minus).vector)


def test_relative_lengths_are_those_of_the_tokens_that_count():
  acts = np.array([[[90.0, 0.0], [3.0, 4.0]], [[0.0, 15.0], [70.0, 0.0]]])
  mask = np.array([[False, True], [True, False]])
  assert vectors.relative_length(np.array([0.0, 2.0]), acts, mask) == pytest.approx(0.2)
  assert vectors.relative_length(
    np.array([[0.0, 2.0], [6.0, 8.0]]), [acts], [mask]
  ) == pytest.approx(1.0)
