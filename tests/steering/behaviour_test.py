"""The log-odds of a set of tokens, against the formula with probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.steering import PromptSet, SteeringError, keep_sign, log_odds

LOGITS = np.random.default_rng(0).standard_normal((4, 3, 11)) * 4


def by_probabilities(logits, ids):
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  inside = p[..., sorted(set(ids))].sum(-1)
  return np.log(inside) - np.log(1 - inside)


@pytest.mark.parametrize('ids', [[2], [0, 10], [5, 5, 3], np.array([1, 2, 3]), list(range(10))])
def test_log_odds_are_those_of_the_probabilities(ids):
  with jax.enable_x64(True):
    found = log_odds(ids)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, by_probabilities(LOGITS, ids), rtol=1e-9)


def test_large_odds_are_exact_where_an_epsilon_would_bound_them():
  logits = jnp.zeros((2, 4)).at[:, 1].set(jnp.array([200.0, -200.0]))
  expected = np.array([200, -200]) - np.log(3)
  np.testing.assert_allclose(log_odds([1])(logits), expected, rtol=1e-6)


def test_odds_do_not_depend_on_a_constant_and_sixteen_bits_are_widened():
  behaviour = log_odds([1, 4])
  logits = jnp.asarray(LOGITS, jnp.float32)
  np.testing.assert_allclose(behaviour(logits + 50), behaviour(logits), rtol=0, atol=1e-4)
  assert behaviour(logits.astype('bfloat16')).dtype == jnp.float32


def test_a_token_of_probability_0_counts_nothing():
  logits = jnp.array([[1.0, -jnp.inf, 2.0]])
  assert float(log_odds([0, 1])(logits)[0]) == pytest.approx(-1)


@pytest.mark.parametrize(
  ('ids', 'words'),
  [([], 'empty'), ([-1], 'not token ids'), ([1.5], 'not token ids'), ([[1, 2]], 'not token ids')],
)
def test_sets_that_are_none_are_refused(ids, words):
  with pytest.raises(SteeringError, match=words):
    log_odds(ids)


def test_a_set_that_does_not_fit_the_vocabulary_is_refused():
  with pytest.raises(SteeringError, match='covers the whole vocabulary of 11'):
    log_odds(range(11))(jnp.asarray(LOGITS, jnp.float32))
  with pytest.raises(SteeringError, match='11 is not a token id'):
    log_odds([3, 11])(jnp.asarray(LOGITS, jnp.float32))


def test_prompts_with_the_wrong_sign_are_left_out_and_counted():
  prompts = PromptSet.of([[1], [2, 3], [4], [5, 6, 7]])
  values = np.array([0.5, -1.0, 0.0, 2.0])
  kept = keep_sign(prompts, values, positive=True)
  assert [row.tolist() for row in kept.prompts.rows] == [[1], [5, 6, 7]]
  assert kept.dropped == 2
  assert str(kept) == '2 of 4 prompts kept: the metric of 2 has the wrong sign'
  assert keep_sign(prompts, values, positive=False).kept.tolist() == [False, True, False, False]
  with pytest.raises(SteeringError, match='none is left'):
    keep_sign(prompts, -np.abs(values), positive=True)
  for wrong in (values[:2], np.array([1, np.nan, 1, 1])):
    with pytest.raises(SteeringError, match='4 prompts and values of shape'):
      keep_sign(prompts, wrong, positive=True)
