"""Drift and formation equal their definitions, pair by pair; planted features form when they are planted."""

import itertools

import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae.analysis import TopTokens, find_top_tokens, measure_drift, measure_formation

D, M, N = 8, 5, 40
RANDOM = np.random.default_rng(0)


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_drift_is_the_cosine_to_the_last_checkpoint_and_to_the_next():
  decoders = [RANDOM.standard_normal((M, D)) for _ in range(4)]
  found = measure_drift(decoders)
  for t, i in itertools.product(range(4), range(M)):
    assert found.to_last[t, i] == pytest.approx(cosine(decoders[t][i], decoders[-1][i]))
    if t < 3:
      assert found.to_next[t, i] == pytest.approx(cosine(decoders[t][i], decoders[t + 1][i]))
  same = measure_drift([decoders[0], 3 * decoders[0]])
  np.testing.assert_allclose(same.to_last, 1, rtol=1e-12)
  assert str(found).count('\n') == 4


def test_top_tokens_are_the_most_active_of_latents_that_are_active_often_enough():
  f = np.maximum(RANDOM.standard_normal((N, M)), 0).astype(np.float32)
  f[3:, 1] = 0  # active on at most three tokens
  found = find_top_tokens(f, n=4)
  assert found.latents.tolist() == [0, 2, 3, 4]
  for i, tokens in zip(found.latents, found.tokens):
    np.testing.assert_array_equal(tokens, np.argsort(-f[:, i], kind='stable')[:4])


def test_similarity_is_the_mean_over_pairs_and_its_error_leaves_out_one_token():
  acts = [RANDOM.standard_normal((N, D)) for _ in range(2)]
  top = TopTokens(np.array([2, 4]), np.array([[0, 5, 7], [7, 8, 20]]))
  drawn = np.array([1, 3, 6, 30, 31])

  def mean(x, tokens):
    return np.mean([cosine(x[a], x[b]) for a, b in itertools.combinations(tokens, 2)])

  found = measure_formation(acts, top, drawn)
  for t, x in enumerate(acts):
    chance = mean(x, drawn)
    assert found.random[t] == pytest.approx(chance)
    without = np.array([mean(x, np.delete(drawn, n)) for n in range(5)])
    error = np.sqrt(4 / 5 * np.square(without - without.mean()).sum())
    assert found.random_error[t] == pytest.approx(error)
    for i, tokens in enumerate(top.tokens):
      assert found.similarity[t, i] == pytest.approx(mean(x, tokens))
      assert found.progress[t, i] == pytest.approx(mean(x, tokens) - chance)
  assert str(found).count('\n') == 3


def test_a_planted_feature_forms_at_the_checkpoint_where_it_is_planted():
  r = np.random.default_rng(1)
  noise, direction = r.standard_normal((3, 400, 32)), r.standard_normal(32)
  has = np.arange(400) < 30
  acts = [x + strength * has[:, None] * direction for x, strength in zip(noise, (0, 0, 5))]
  f = np.where(has, 1 + r.random(400), 0)[:, None]
  found = measure_formation(acts, find_top_tokens(f, 25), np.arange(100, 300))
  assert abs(found.progress[0, 0]) < 0.05
  assert abs(found.progress[1, 0]) < 0.05
  assert found.progress[2, 0] > 0.9
  assert abs(found.random[2]) < 4 * found.random_error[2] + 0.01


def test_mistakes_are_refused():
  W, x = RANDOM.standard_normal((M, D)), RANDOM.standard_normal((N, D))
  top, drawn = TopTokens(np.array([0]), np.array([[0, 1]])), np.arange(5)
  beyond = TopTokens(np.array([0]), np.array([[0, N]]))
  for call, message in [
    (lambda: measure_drift([W]), '1 given; expected at least 2'),
    (lambda: measure_drift(np.stack([W, W])), 'ndarray in place of a list'),
    (lambda: measure_drift([W, W[1:]]), 'decoders of shapes'),
    (lambda: measure_drift([W, W * 0]), '5 of 5 decoder rows have length 0'),
    (lambda: measure_drift([W, W * np.nan]), 'W_dec contains NaN'),
    (lambda: find_top_tokens(np.ones((N, M)), 1), 'n=1'),
    (lambda: find_top_tokens(np.zeros((N, M))), 'no latent is active on 25 of 40 tokens'),
    (lambda: find_top_tokens(np.ones(N)), r'latents has shape \[40\]'),
    (lambda: measure_formation([], top, drawn), '0 given; expected at least 1'),
    (lambda: measure_formation([x, x[1:]], top, drawn), r'activations of \[40, 39\] tokens'),
    (lambda: measure_formation([x * 0], top, drawn), 'activations have length 0'),
    (lambda: measure_formation([x], beyond, drawn), 'top.tokens has numbers from 0 to 40'),
    (lambda: measure_formation([x], top, drawn - 1), 'random_tokens has numbers from -1'),
    (lambda: measure_formation([x], top, drawn[:2]), '2 random tokens; expected three'),
    (lambda: measure_formation([x], top, drawn * 0), 'each once'),
    (lambda: measure_formation([x], top, drawn * 1.0), 'float64; expected numbers'),
  ]:
    with pytest.raises(SAEError, match=message):
      call()
