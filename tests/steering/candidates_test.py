"""Candidates, their moments and loud channels, against loops in NumPy over single prompts without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.models import ours
from mechjax.steering import (
  PromptSet,
  SteeringError,
  divide_by_variance,
  draw_directions,
  find_candidates,
  find_loud,
  make_reader,
  mask_loud,
  measure_loudness,
  measure_stream,
)
from mechjax.steering.candidates import Moments
from tests.models import decoders
from tests.patching import plain

NAME = 'mistral'
FORWARD = ours.forward(decoders.params(NAME), decoders.CONFIGS[NAME])
READ = make_reader(FORWARD.apply, FORWARD.params)
POSITIONS = (-1, -3)
RANDOM = np.random.default_rng(2)
ROWS = [RANDOM.integers(0, decoders.V, n) for n in (3, 6, 4, 5, 3)]
OTHERS = [RANDOM.integers(0, decoders.V, n) for n in (5, 3, 4)]


def by_hand(rows):
  """The stream before each layer at POSITIONS, one prompt at a time: [prompts, positions, L, D]."""
  found = []
  for row in rows:
    at = plain.values(NAME, row[None])
    layers = range(decoders.CONFIGS[NAME].n_layers)
    found.append([[at[f'resid_pre.{l}'][0, p] for l in layers] for p in POSITIONS])
  return np.array(found)


def pad_left(rows):
  width = max(map(len, rows))
  tokens = np.full((len(rows), width), 2, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(rows):
    tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, True
  return PromptSet(tokens, mask)


@pytest.mark.parametrize('pad', [PromptSet.of, pad_left])
def test_candidates_are_differences_of_means_whatever_the_padding(pad):
  found = find_candidates(READ, pad(ROWS), pad(OTHERS), POSITIONS, batch=2)
  expected = by_hand(ROWS).mean(0) - by_hand(OTHERS).mean(0)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_moments_do_not_depend_on_the_batch():
  stream = RANDOM.standard_normal((2, 7, 4, 3)) * 10 + 1e4  # [L, B, T, D]
  prompts = PromptSet.of(np.arange(28).reshape(7, 4))
  read = lambda tokens, mask: jnp.asarray(stream[:, tokens[:, 0] // 4])  # noqa: E731
  with jax.enable_x64(True):
    for batch in (1, 3, 7, 50):
      found = measure_stream(read, prompts, (-2,), batch)
      assert found.count == 7
      np.testing.assert_allclose(found.mean[0], stream[:, :, -2].mean(1), rtol=1e-12)
      np.testing.assert_allclose(found.variance[0], stream[:, :, -2].var(1), rtol=1e-9)


def test_a_position_that_all_prompts_share_has_exactly_no_difference_before_layer_0():
  rows, others = ([np.append(row, 1) for row in rows] for rows in (ROWS, OTHERS))
  found = find_candidates(READ, PromptSet.of(rows), PromptSet.of(others), (-1,), batch=2)
  np.testing.assert_array_equal(found[0, 0], np.zeros_like(found[0, 0]))
  assert np.abs(found[0, 1]).min() > 0


def test_prompts_that_do_not_fit_are_refused():
  with pytest.raises(SteeringError, match='prompt 3 has 3 tokens, and position -4'):
    find_candidates(READ, PromptSet.of(ROWS[1:]), PromptSet.of(OTHERS), (-4,))
  for positions in ((0,), (), (-1, 2), (True,), (-1.0,)):
    with pytest.raises(SteeringError, match='negative integers'):
      find_candidates(READ, PromptSet.of(ROWS), PromptSet.of(OTHERS), positions)
  with pytest.raises(SteeringError, match='there are no prompts'):
    PromptSet.of([])
  with pytest.raises(SteeringError, match='prompt 1 has no token'):
    PromptSet(np.ones((2, 2), np.int32), np.array([[True, True], [False, False]]))
  with pytest.raises(SteeringError, match='prompt 1 is not a row'):
    PromptSet.of([[1, 2], [0.5]])
  with pytest.raises(SteeringError, match='are not prompts'):
    PromptSet(np.ones((2, 3), np.int32), np.ones((2, 3), int))
  with pytest.raises(SteeringError, match=r'not \[L, B, T, D\]'):
    find_candidates(lambda t, m: jnp.zeros((2, 3)), PromptSet.of(ROWS), PromptSet.of(OTHERS), (-1,))
  with pytest.raises(SteeringError, match='position -1, before layer 1'):
    measure_stream(
      lambda t, m: jnp.zeros((2, *t.shape, 3)).at[1, 0].set(jnp.nan), PromptSet.of(ROWS), (-1,)
    )


def test_prompts_keep_their_order_and_their_tokens():
  prompts = pad_left(ROWS)
  for found, row in zip(prompts.rows, ROWS):
    np.testing.assert_array_equal(found, row)
  blocks = list(prompts.blocks(2))
  assert [n for _, n in blocks] == [2, 2, 1]
  assert [index.tolist() for index, _ in blocks] == [[0, 1], [2, 3], [4, 4]]
  with_mask = PromptSet.of((jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)))
  np.testing.assert_array_equal(with_mask.columns((-1, -2)), prompts.columns((-1, -2)))


# --- loud channels --------------------------------------------------------------------------------------


def moments(seed=0):
  """Moments with one loud channel, number 4."""
  random = np.random.default_rng(seed)
  mean, variance = random.standard_normal((2, 3, 6)), 1 + random.random((2, 3, 6))
  mean[..., 4], variance[..., 4] = 400, 900
  return Moments(10, mean, variance)


def test_loudness_is_the_largest_deviation_over_the_median_one():
  found = measure_loudness(moments())
  for i, l in np.ndindex(2, 3):
    deviation = sorted(np.sqrt(moments().variance[i, l]))
    middle = (deviation[2] + deviation[3]) / 2
    assert found[i, l] == pytest.approx(30 / middle / 6**0.5)
  flat = Moments(3, np.zeros((1, 1, 4)), np.zeros((1, 1, 4)))
  assert np.isnan(measure_loudness(flat)).all()


def test_loud_channels_are_masked_and_others_stay():
  directions = np.random.default_rng(1).standard_normal((2, 3, 6))
  found = mask_loud(directions, moments())
  np.testing.assert_array_equal(found[..., 4], np.zeros((2, 3)))
  rest = [0, 1, 2, 3, 5]
  np.testing.assert_array_equal(found[..., rest], directions[..., rest])
  assert not find_loud(moments(), 1e6).any()
  with pytest.raises(SteeringError, match='factor=1'):
    find_loud(moments(), 1)


def test_a_division_by_variances_keeps_the_length():
  directions = np.random.default_rng(1).standard_normal((2, 3, 6))
  found = divide_by_variance(directions, moments())
  for i, l in np.ndindex(2, 3):
    wanted = directions[i, l] / moments().variance[i, l]
    wanted *= np.linalg.norm(directions[i, l]) / np.linalg.norm(wanted)
    np.testing.assert_allclose(found[i, l], wanted)
  still = Moments(3, np.zeros((1, 1, 4)), np.array([[[1.0, 1, 0, 1]]]))
  np.testing.assert_array_equal(divide_by_variance(np.zeros((1, 1, 4)), still), np.zeros((1, 1, 4)))
  with pytest.raises(SteeringError, match='coordinate 2 does not vary'):
    divide_by_variance(np.ones((1, 1, 4)), still)


def test_an_adjustment_sees_the_negative_prompts():
  seen = []

  def adjust(directions, negative):
    seen.append(negative)
    return 2 * directions

  sets = PromptSet.of(ROWS), PromptSet.of(OTHERS)
  twice = find_candidates(READ, *sets, POSITIONS, adjust=adjust, batch=2)
  np.testing.assert_array_equal(twice, 2 * find_candidates(READ, *sets, POSITIONS, batch=2))
  assert seen[0].count == len(OTHERS)
  np.testing.assert_allclose(seen[0].mean, by_hand(OTHERS).mean(0), rtol=0, atol=2e-5)


# --- random directions ----------------------------------------------------------------------------------


def test_random_directions_have_the_length_and_depend_on_the_seed_alone():
  direction = np.array([3.0, 0, 4, 0, 0, 0])
  drawn = draw_directions(direction, 5, seed=1)
  np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 5)
  np.testing.assert_array_equal(draw_directions(direction * 2, 3, seed=1), 2 * drawn[:3])
  assert np.abs(drawn - draw_directions(direction, 5, seed=2)).max() > 0.1
  many = draw_directions(direction, 4000) / 5
  np.testing.assert_allclose(many.T @ many / 4000, np.eye(6) / 6, rtol=0, atol=0.02)
  for wrong in (np.zeros(4), np.array([1.0, np.nan])):
    with pytest.raises(SteeringError):
      draw_directions(wrong, 2)
  with pytest.raises(SteeringError, match='n=0'):
    draw_directions(direction, 0)
