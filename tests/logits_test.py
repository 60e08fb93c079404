"""Log-probabilities, losses and divergences against NumPy in double precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import logits

FLOAT16 = pytest.param(jnp.float16, marks=pytest.mark.float16, id='float16')

V = 7
RANDOM = np.random.default_rng(0)
P, Q = (RANDOM.normal(size=(2, 3, V)) * 3 for _ in range(2))


def plain(x):
  """Log-probabilities by their definition."""
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize('dtype', [jnp.bfloat16, FLOAT16, jnp.float32])
def test_log_probabilities_are_those_of_the_rounded_logits_in_float32(dtype):
  rounded = jnp.asarray(P, dtype)
  found = logits.log_probs(rounded)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, plain(np.asarray(rounded, np.float64)), atol=2e-6)


def test_the_loss_of_each_position_is_that_of_a_plain_loop():
  targets = np.array([[1, -1, V - 1], [0, 3, -1]])
  found = logits.next_token_loss(logits.log_probs(jnp.asarray(P)), jnp.asarray(targets))
  for at, target in np.ndenumerate(targets):
    wanted = 0 if target < 0 else -plain(P)[at][target]
    assert found[at] == pytest.approx(wanted, abs=2e-6), at


def test_the_loss_of_an_id_that_the_vocabulary_lacks_is_nan():
  found = logits.next_token_loss(jnp.zeros((2, V)), jnp.array([V, 0]))
  assert np.isnan(found).tolist() == [True, False]


def test_the_divergence_is_that_of_the_definition_without_impossible_tokens():
  p = P.copy()
  p[0, 0, 2] = -np.inf
  found = logits.kl_divergence(*(logits.log_probs(jnp.asarray(x)) for x in (p, Q)))
  for at in np.ndindex(p.shape[:-1]):
    pairs = [(a, b) for a, b in zip(plain(p)[at], plain(Q)[at]) if a > -np.inf]
    assert found[at] == pytest.approx(sum(np.exp(a) * (a - b) for a, b in pairs), rel=1e-5), at
