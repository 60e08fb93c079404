"""Distributions of tokens, KL divergences and predictions, against SciPy and plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mechjax.errors import NeuronError
from mechjax.neurons import (
  counts,
  find_direction,
  mean_prediction,
  measure_kl,
  measure_predictions,
  smooth,
)
from mechjax.neurons.frequency import Frequency, check_unigram
from tests.neurons import small

TOKENS = np.random.default_rng(0).integers(0, 9, (3, 8))


def test_counts_are_those_of_all_batches():
  found = counts(iter([TOKENS, TOKENS[0], jnp.asarray(TOKENS)]), 11)
  flat = [*TOKENS.ravel(), *TOKENS[0], *TOKENS.ravel()]
  assert found.tolist() == [flat.count(i) for i in range(11)]


def test_one_is_added_to_each_count():
  p = smooth(np.array([0, 3, 1]))
  assert p.tolist() == [1 / 7, 4 / 7, 2 / 7]


def test_kl_is_that_of_scipy():
  with jax.enable_x64(True):
    logits = np.random.default_rng(1).standard_normal((4, small.V)) * 3
    p = small.draw_unigram()
    found = measure_kl(jnp.asarray(p), jnp.asarray(logits))
    np.testing.assert_allclose(found, small.kl(p, logits), rtol=1e-12)


@pytest.mark.parametrize('batch', [1, 5, 100])
def test_predictions_are_those_of_the_model(batch):
  with jax.enable_x64(True):
    case = small.Case.of('gpt2')
    x, _, ids = case.inputs
    found = measure_predictions(case.readout, x, ids, batch=batch)
    np.testing.assert_allclose(found.entropy, small.entropy(case.plain_logits), atol=1e-11)
    np.testing.assert_allclose(found.loss, case.loss(case.plain_logits), atol=1e-11)
    mean = mean_prediction(case.readout, x, batch=batch)
    truth = scipy.special.softmax(case.plain_logits, -1).mean(0)
    np.testing.assert_allclose(mean, truth, atol=1e-12)


@pytest.mark.parametrize(
  ('batches', 'message'),
  [
    ([], 'no tokens to count'),
    ([TOKENS.astype(float)], 'float64'),
    ([TOKENS, TOKENS + 9], 'contains'),
    ([np.zeros((0, 3), int)], 'is empty'),
  ],
)
def test_tokens_that_cannot_be_counted_are_refused(batches, message):
  with pytest.raises(NeuronError, match=message):
    counts(batches, 11)


@pytest.mark.parametrize('given', [np.array([1, -1]), np.array([0.5, 0.5]), np.ones((2, 2), int)])
def test_counts_that_are_none_are_refused(given):
  with pytest.raises(NeuronError, match='counts of shape'):
    smooth(given)


@pytest.mark.parametrize(
  ('p', 'message'),
  [
    (np.array([0.5, 0.5, 0.0]), 'probability 0 for token 2'),
    (np.array([0.5, 0.7, -0.2]), r'probability -0\.2 for token 2'),
    (np.array([0.5, 0.2, 0.2]), r'sums to 0\.9'),
    (np.array([0.5, np.nan, 0.2]), 'NaN'),
    (np.array([0.5, 0.5]), r'unigram has shape \[2\]'),
    (np.array([1, 1, 1]), 'int64'),
  ],
)
def test_distributions_that_are_none_are_refused(p, message):
  with pytest.raises(NeuronError, match=message):
    check_unigram(p, 3)


def test_a_uniform_distribution_has_no_direction():
  with pytest.raises(NeuronError, match='uniform'):
    find_direction(np.full(4, 0.25), 4)


def test_predictions_of_other_widths_are_refused():
  with jax.enable_x64(True):
    case = small.Case.of('gpt2')
    x, _, ids = case.inputs
    with pytest.raises(NeuronError, match='x has shape'):
      measure_predictions(case.readout, x[:, :5], ids)
    with pytest.raises(NeuronError, match='next_tokens has shape'):
      measure_predictions(case.readout, x, ids[:4])
    with pytest.raises(NeuronError, match='batch=0'):
      mean_prediction(case.readout, x, batch=0)
    with pytest.raises(NeuronError, match=r'unigram has shape \[30\]'):
      Frequency.of(case.readout, np.full(30, 1 / 30))


@pytest.mark.parametrize(
  ('p', 'message'),
  [
    (np.arange(1, 6.0), 'unigram sums to 15'),
    (np.array([0, 0.5, 0.5, 0, 0]), 'has the probability 0'),
    (np.ones(1), r'unigram has shape \[1\], and the logits have \[2, 5\]'),
    ([0.2] * 5, 'unigram has shape .* dtype list'),
  ],
)
def test_a_divergence_from_something_else_than_a_distribution_is_refused(p, message):
  with pytest.raises(NeuronError, match=message):
    measure_kl(p, jnp.zeros((2, 5)))


def test_a_divergence_may_be_traced():
  p, logits = jnp.full(5, 0.2), jnp.arange(5.0)
  np.testing.assert_allclose(jax.jit(measure_kl)(p, logits), measure_kl(p, logits), rtol=1e-6)
