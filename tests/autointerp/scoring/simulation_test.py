"""Simulation: the expectation against a softmax over a vocabulary by hand, and the correlation over all tokens."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from mechjax.autointerp.record import Excerpt, LatentExamples
from mechjax.autointerp.scoring import Simulation
from mechjax.autointerp.scoring.simulation import mean_level
from mechjax.errors import InterpretationError, ProviderError
from mechjax.providers.requests import Answer, Failed
from tests.autointerp.scoring.planted import W, WordTable, make_examples

RNG = np.random.default_rng(0)


def varied(sequence, start=0, active=True):
  """An excerpt with many different activations."""
  rng = np.random.default_rng([sequence, start])
  activations = rng.uniform(0, 3, W) * (rng.uniform(size=W) < 0.5) * active
  activations[0] = active
  return Excerpt(
    sequence,
    start,
    rng.integers(0, 50, W),
    (' x',) * W,
    activations.astype(np.float32),
    -(not active),
  )


EXAMPLES = LatentExamples(
  latent=3,
  maximum=3.0,
  density=0.1,
  shown=(),
  shown_inactive=(),
  active=tuple(varied(s) for s in range(8)),
  inactive=(),
  hard=(),
  random=tuple(varied(s, active=s % 2 == 0) for s in range(20, 28)),
)


def softmax_replies(requests, vocabulary=60, seed=0):
  """Replies of a random model whose digits are somewhere in its vocabulary, and the expectations by plain loops."""
  rng = np.random.default_rng(seed)
  digits = rng.choice(vocabulary, len(requests[0].answers), replace=False)
  replies, expected = [], []
  for request in requests:
    logits = rng.normal(size=(len(request.pieces), vocabulary)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    replies.append(Answer(probabilities=probabilities[:, digits]))
    for row in logits:
      weights = [math.exp(row[digit]) for digit in digits]
      expected.append(sum(v * w for v, w in enumerate(weights)) / sum(weights))
  return replies, expected


def test_the_expectation_is_that_of_a_softmax_over_the_numbers_alone():
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  replies, expected = softmax_replies(plan.requests)
  found = np.concatenate([mean_level(reply.probabilities) for reply in replies])
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  values = plan.evaluate(replies)
  np.testing.assert_allclose(np.concatenate(values.predicted) * 9, expected, rtol=1e-12)
  mass = np.mean(np.concatenate([reply.probabilities.sum(-1) for reply in replies]))
  assert values.more['mass'] == pytest.approx(mass)


def test_the_score_is_one_correlation_over_all_tokens_of_all_excerpts():
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  replies, expected = softmax_replies(plan.requests)
  values = plan.evaluate(replies)
  true = np.concatenate([e.activations for e in values.excerpts])
  assert values.value == pytest.approx(scipy.stats.pearsonr(expected, true).statistic, abs=1e-9)
  assert values.n == 10 * W


@pytest.mark.parametrize('levels', [1, 5, 9])
def test_predictions_proportional_to_the_truth_have_correlation_one_and_explain_everything(levels):
  plan = Simulation(levels=levels).plan(EXAMPLES, 'x', RNG)
  excerpts = Simulation().choose(EXAMPLES)
  replies = []
  for excerpt in excerpts:  # two levels with weights whose expectation is the activation
    high = excerpt.activations.astype(np.float64) / 3
    p = np.zeros((W, levels + 1))
    p[:, 0], p[:, levels] = 1 - high, high
    replies.append(Answer(probabilities=p * 0.37))
  values = plan.evaluate(replies)
  assert values.value == pytest.approx(1, abs=1e-12)
  assert values.more['explained'] == pytest.approx(1, abs=1e-12)
  assert values.more['mass'] == pytest.approx(0.37)


def test_a_uniform_model_expects_the_middle_and_has_no_correlation():
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  rng = np.random.default_rng(0)
  replies = [
    Answer(probabilities=np.tile(rng.uniform(0.01, 0.1, (W, 1)), 10)) for _ in plan.requests
  ]
  values = plan.evaluate(replies)
  np.testing.assert_allclose(np.concatenate(values.predicted) * 9, 4.5, rtol=1e-12)
  assert math.isnan(values.value)
  assert values.reason == 'predictions are constant'


def test_a_latent_that_is_not_active_in_scored_texts_has_no_score_but_a_reason():
  silent = dataclasses.replace(
    EXAMPLES, active=(), random=tuple(varied(s, active=False) for s in range(9))
  )
  plan = Simulation().plan(silent, 'x', RNG)
  values = plan.evaluate(softmax_replies(plan.requests)[0])
  assert math.isnan(values.value)
  assert values.reason == 'true activations are constant'
  assert 'explained' not in values.more


def test_without_excerpts_nothing_is_asked():
  plan = Simulation().plan(dataclasses.replace(EXAMPLES, active=(), random=()), 'x', RNG)
  assert plan.requests == ()
  assert plan.evaluate([]).reason == '0 predictions; a correlation needs two'


def test_the_strongest_and_the_first_random_excerpts_are_scored_each_once():
  overlapping = [varied(0, start=W - 1), varied(1, start=1)]
  twins = (*EXAMPLES.active[:3], *overlapping, *EXAMPLES.random)
  chosen = Simulation(n_top=8, n_random=2).choose(dataclasses.replace(EXAMPLES, random=twins))
  tops = [float(e.activations.max()) for e in chosen[:8]]
  assert tops == sorted(tops, reverse=True)
  assert {e.sequence for e in chosen[:8]} == set(range(8))
  assert [e.sequence for e in chosen[8:]] == [20, 21]
  next_to_it = (varied(0, start=W), *twins)
  chosen = Simulation(n_top=8, n_random=2).choose(dataclasses.replace(EXAMPLES, random=next_to_it))
  assert [(e.sequence, e.start) for e in chosen[8:]] == [(0, W), (20, 0)]


@pytest.mark.parametrize('broken', [Failed('cut'), Answer(probabilities=np.zeros((W, 10)))])
def test_an_excerpt_whose_reply_failed_enters_nothing(broken):
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  replies, expected = softmax_replies(plan.requests)
  replies[2] = broken
  values = plan.evaluate(replies)
  kept = [i for i in range(10) if i != 2]
  true = np.concatenate([values.excerpts[i].activations for i in kept])
  guess = np.array(expected).reshape(10, W)[kept].ravel()
  assert values.value == pytest.approx(scipy.stats.pearsonr(guess, true).statistic, abs=1e-9)
  assert (values.n, values.n_failed) == (9 * W, 1)
  assert np.isnan(values.predicted[2]).all()


def test_one_token_without_mass_fails_its_excerpt():
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  replies, _ = softmax_replies(plan.requests)
  replies[0].probabilities[3] = 0
  assert plan.evaluate(replies).n_failed == 1


@pytest.mark.parametrize(
  ('reply', 'message'),
  [
    (Answer('0'), 'expected a float64 array'),
    (Answer(probabilities=np.ones((W, 9)) / 9), 'shape'),
    (Answer(probabilities=np.ones((W - 1, 10)) / 10), 'shape'),
    (Answer(probabilities=np.ones((W, 10)) / 9), 'sum to 1.11'),
    (Answer(probabilities=np.full((W, 10), math.nan)), 'negative or not finite'),
    (Answer(probabilities=np.full((W, 10), -0.1)), 'negative or not finite'),
    (Answer(probabilities=np.full((W, 10), 0.1j)), 'expected a float64 array'),
  ],
)
def test_a_reply_of_another_form_is_an_error(reply, message):
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  with pytest.raises(ProviderError, match=message):
    plan.evaluate([reply] * len(plan.requests))


def test_something_that_is_not_a_reply_is_an_error():
  plan = Simulation().plan(EXAMPLES, 'x', RNG)
  with pytest.raises(InterpretationError, match='None is not a reply'):
    plan.evaluate([None] * len(plan.requests))


@pytest.mark.parametrize('behind', ['own', 'unknown'])
def test_the_examples_of_the_prompt_have_the_form_of_the_table(behind):
  plan = Simulation(levels=7, behind=behind).plan(EXAMPLES, 'x', RNG)
  assert {request.behind for request in plan.requests} == {behind}
  tables = [m.content for m in plan.requests[0].messages if m.role == 'assistant']
  assert len(tables) == 3
  for table in tables:
    assert table.endswith('\n')
    numbers = [line.split('\t')[1] for line in table.splitlines()]
    hidden = 4 if behind == 'unknown' else 0
    assert numbers[:hidden] == ['unknown'] * hidden
    assert all(0 <= int(n) <= 7 for n in numbers[hidden:])
    assert '7' in numbers


class Broken:
  def __init__(self, values):
    self.values = values

  def predict(self, tokens):
    return self.values


@pytest.mark.parametrize('values', [np.zeros(W - 1), np.full(W, np.nan), 3.0])
def test_a_table_with_other_predictions_than_numbers_of_tokens_is_refused(values):
  with pytest.raises(InterpretationError, match='predictions of shape'):
    Simulation().score_table(make_examples(0), Broken(values), 1.0, RNG)


def test_the_scale_of_a_table_does_not_change_its_correlation():
  one, other = (
    Simulation().score_table(make_examples(0), WordTable(0), s, RNG) for s in (1.0, 7.0)
  )
  assert one.value == pytest.approx(other.value, abs=1e-12)
  np.testing.assert_allclose(np.concatenate(one.predicted), 7 * np.concatenate(other.predicted))


@pytest.mark.parametrize(
  'settings',
  [
    {'levels': 10},
    {'levels': 0},
    {'levels': 9.0},
    {'behind': 'other'},
    {'n_top': -1},
    {'n_top': True},
    {'n_random': 1.5},
    {'n_top': 0, 'n_random': 0},
    {'name': 3},
  ],
)
def test_settings_out_of_range_are_refused(settings):
  with pytest.raises(InterpretationError):
    Simulation(**settings)
