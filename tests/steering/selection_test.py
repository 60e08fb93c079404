"""Scores of candidates against NumPy, and selections against the truth of a planted direction."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments.benchmarks import timing
from mechjax.models import ours
from mechjax.steering import (
  DirectionScores,
  DirectionSelection,
  PromptSet,
  SteeringError,
  draw_directions,
  find_candidates,
  keep_sign,
  log_odds,
  make_reader,
)
from tests.models import decoders
from tests.patching import plain
from tests.steering import planted

IDS = (3, 8, 20)
RANDOM = np.random.default_rng(11)
POSITIVE = [RANDOM.integers(0, decoders.V, n) for n in (4, 6, 5)]
NEGATIVE = [RANDOM.integers(0, decoders.V, n) for n in (5, 3)]
CANDIDATES = RANDOM.standard_normal((2, 2, 16))


# --- scores, against NumPy ------------------------------------------------------------------------------


def last_logits(name, rows, edit):
  return np.array([plain.logits(name, row[None], edit)[0, -1] for row in rows])


def odds(logits):
  inside = np.isin(np.arange(decoders.V), IDS)
  return scipy.special.logsumexp(logits[:, inside], 1) - scipy.special.logsumexp(
    logits[:, ~inside], 1
  )


def expected_scores(name, r, layer):
  unit = r / np.linalg.norm(r)
  writes = ('embed', 'attn_out', 'mlp_out')

  def removed(site, value):
    return value - (value @ unit)[..., None] * unit if site.split('.')[0] in writes else value

  def added(site, value):
    return value + r if site == f'resid_pre.{layer}' else value

  plain_logits = last_logits(name, NEGATIVE, lambda site, value: value)
  p, q = (
    scipy.special.log_softmax(x, axis=-1)
    for x in (plain_logits, last_logits(name, NEGATIVE, removed))
  )
  return (
    odds(last_logits(name, POSITIVE, removed)).mean(),
    odds(last_logits(name, NEGATIVE, added)).mean(),
    scipy.special.rel_entr(np.exp(p), np.exp(q)).sum(-1).mean(),
  )


@functools.cache
def make_selection(name, resumed):
  model = ours.forward(decoders.params(name), decoders.CONFIGS[name])
  start = model.forward_from if resumed else None
  select = DirectionSelection(model.apply, log_odds(IDS), depth=1.0, forward_from=start, batch=2)
  return functools.partial(select.score, model.params)


@pytest.mark.parametrize(('name', 'resumed'), [('gpt2', True), ('qwen', False)])
def test_scores_are_those_of_edits_by_hand(name, resumed):
  score = make_selection(name, resumed)
  scores = score(CANDIDATES, PromptSet.of(POSITIVE), PromptSet.of(NEGATIVE))
  for i, layer in np.ndindex(2, 2):
    expected = expected_scores(name, CANDIDATES[i, layer], layer)
    np.testing.assert_allclose(scores.values[i, layer], expected, rtol=1e-4, atol=1e-4)
  base = [odds(last_logits(name, rows, lambda s, v: v)).mean() for rows in (POSITIVE, NEGATIVE)]
  np.testing.assert_allclose([scores.positive, scores.negative], base, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_no_score():
  score, right = make_selection('gpt2', True), [PromptSet.of(rows) for rows in (POSITIVE, NEGATIVE)]
  left = [PromptSet(*map(_move_right, (s.tokens, s.mask), (s.mask, s.mask))) for s in right]
  assert not left[0].mask[0, 0]
  found, expected = (score(CANDIDATES, *sets).values for sets in (left, right))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def _move_right(x, mask):
  return np.stack([np.roll(row, (~real).sum()) for row, real in zip(x, mask)])


def test_one_executable_for_each_set_of_prompts_serves_all_candidates():
  score, sets = make_selection('gpt2', True), (PromptSet.of(POSITIVE), PromptSet.of(NEGATIVE))
  one = np.zeros_like(CANDIDATES)
  one[1, 1] = CANDIDATES[0, 0]
  score(one, *sets)
  with timing.compilations() as again:
    scores = score(2 * CANDIDATES, *sets)
  assert again.count == 0
  assert np.isfinite(scores.values).all()


# --- the planted direction ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def study():
  """The candidates of the planted model, its scores, and prompts that were used for neither."""
  model = planted.FORWARD
  marked, unmarked = (planted.prompts(24, marked, seed=1) for marked in (True, False))
  directions = find_candidates(make_reader(model.apply, model.params), marked, unmarked, (-1, -2))
  select = DirectionSelection(
    model.apply, log_odds(planted.ANSWERS), forward_from=model.forward_from
  )
  sets = [planted.prompts(12, marked, seed=2) for marked in (True, False)]
  return directions, select, sets, select.score(model.params, directions, *sets)


def test_the_metric_has_the_sign_of_the_marker(study):
  _, select, sets, scores = study
  for prompts, positive in zip(sets, (True, False)):
    values = select.measure(planted.PARAMS, prompts)
    assert keep_sign(prompts, values, positive).dropped == 0
  assert scores.positive > 1 > -1 > scores.negative


def test_the_selection_finds_the_planted_direction(study):
  directions, select, sets, scores = study
  choice = select(planted.PARAMS, directions, *sets)
  cosine = choice.direction @ planted.U / np.linalg.norm(choice.direction)
  assert cosine > 0.99
  assert choice.layer >= 2
  assert choice.bypass < scores.negative / 2
  assert choice.induce > scores.positive / 2
  assert choice.kl < 0.1
  np.testing.assert_array_equal(choice.direction, directions[choice.index])


def test_random_directions_of_the_same_length_do_neither(study):
  directions, select, sets, scores = study
  choice = scores.choose()
  repeated = np.zeros((8, *directions.shape[1:]))
  repeated[:, choice.layer] = draw_directions(choice.direction, 8, seed=0)
  control = select.score(planted.PARAMS, repeated, *sets).values[:, choice.layer]
  assert control[:, 0].mean() > scores.positive / 2
  assert control[:, 0].min() > choice.bypass + 1
  assert control[:, 1].mean() < scores.negative / 2
  assert control[:, 1].max() < choice.induce - 1


def test_discarded_candidates_are_counted_by_the_limit_that_they_fail(study):
  _, _, _, scores = study
  choice = scores.choose()
  assert choice.discarded['depth'] == 2  # layer 4 of 5, at both positions
  assert choice.discarded['zero'] == 1  # every prompt ends with the same token
  assert np.isnan(scores.values[:, 4]).all()
  assert np.isnan(scores.values[0, 0]).all()
  failed = scores.find_failures(0.1, 0.0)
  passing = ~np.any(list(failed.values()), axis=0)
  best = min((scores.values[i, l, 0], (i, l)) for i, l in np.argwhere(passing).tolist())
  assert best[1] == choice.index


# --- limits ---------------------------------------------------------------------------------------------


def scores_of(values):
  values = np.array(values, float)
  return DirectionScores(values, np.ones((*values.shape[:2], 4)), values.shape[1], 1.0, -1.0)


#               bypass, induce, kl
SCORES = scores_of([[[-3, 1, 0.3], [-2, -0.3, 0.09]], [[-1, 2, 0.05], [-4, -5, 0.2]]])


def test_the_least_bypass_within_the_limits_is_chosen():
  assert SCORES.choose().index == (1, 0)
  assert SCORES.choose(kl=0.5).index == (0, 0)
  assert SCORES.choose(kl=0.5, induce=-10).index == (1, 1)
  choice = SCORES.choose(induce=-1)
  assert choice.index == (0, 1)
  assert choice.discarded == {'depth': 0, 'zero': 0, 'NaN': 0, 'kl': 2, 'induce': 1}
  assert (choice.bypass, choice.induce, choice.kl) == (-2, -0.3, 0.09)


def test_none_left_is_an_error_with_the_counts_and_the_nearest_candidates():
  with pytest.raises(SteeringError) as caught:
    SCORES.choose(kl=0.06, induce=3)
  assert 'none of 4 candidates is left by kl <= 0.06 and induce >= 3' in caught.value.what
  assert caught.value.where.endswith('kl 3, induce 4')
  assert caught.value.cause == 'nearest: [1, 0] fails induce alone (bypass -1, induce 2, kl 0.05)'
  with pytest.raises(SteeringError) as caught:
    SCORES.choose(kl=0.01, induce=0)
  assert '[1, 0] fails kl alone' in caught.value.cause
  with pytest.raises(SteeringError, match=r'\[1, 0\] fails kl and induce \(bypass -1'):
    SCORES.choose(kl=0.01, induce=3)


def test_nan_is_discarded_and_never_chosen():
  scores = scores_of([[[np.nan, 1, 0.01], [-2, 1, 0.01]]])
  choice = scores.choose()
  assert choice.index == (0, 1)
  assert choice.discarded['NaN'] == 1
  with pytest.raises(SteeringError, match='no candidate was scored'):
    scores_of([[[np.nan] * 3] * 2]).choose()


@pytest.mark.parametrize(
  'settings',
  [
    {'kl': 0},
    {'kl': float('nan')},
    {'kl': '0.1'},
    {'induce': None},
    {'induce': True},
    {'depth': 0},
    {'depth': 1.5},
    {'batch': 0},
  ],
)
def test_settings_out_of_range_are_refused(settings):
  (name,) = settings
  with pytest.raises(SteeringError, match=name):
    DirectionSelection(planted.FORWARD.apply, log_odds([1]), **settings)


def test_arguments_that_do_not_fit_are_refused():
  model, sets = planted.FORWARD, [PromptSet.of([[1, 2]])] * 2
  select = DirectionSelection(model.apply, log_odds([1]))
  for shape in ((2, 4, 16), (2, 5, 8), (5, 16)):
    with pytest.raises(SteeringError, match=r'\[L, D\] = \[5, 16\]'):
      select.score(model.params, np.ones(shape), *sets)
  with pytest.raises(SteeringError, match='candidates contain NaN'):
    select.score(model.params, np.full((1, 5, 16), np.nan), *sets)
  with pytest.raises(SteeringError, match='not a function'):
    DirectionSelection(model.apply, 'refusal')
  constant = DirectionSelection(model.apply, lambda logits: jnp.float32(1))
  with pytest.raises(SteeringError, match='not one number for each prompt'):
    constant.measure(model.params, sets[0])
  broken = DirectionSelection(model.apply, lambda logits: logits[:, 0] * jnp.nan)
  with pytest.raises(SteeringError, match='metric of the plain model is nan'):
    broken.measure(model.params, sets[0])
