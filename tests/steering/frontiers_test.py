"""The frontier against loops over texts, and its interpolation against lines drawn by hand."""

import math

import jax
import numpy as np
import pytest
import scipy.special

from mechjax.errors import SteeringError
from mechjax.models import decoder
from mechjax.steering import Add, at, everywhere, first, frontiers, generated, rollouts
from mechjax.steering.frontiers import FrontierPoint, frontier, success_at_equal_loss
from tests.models import decoders
from tests.steering import plain
from tests.steering.plain import vector

NAME, SITE = 'gpt2', 'resid_pre.1'
TEXTS = np.random.default_rng(2).integers(0, decoders.V, (3, 12)).astype(np.int32)
WORDS = {'Wedding', 'bride'}
SAMPLED = {
  0.0: ['a plain day', 'a plain night'],
  1.0: ['The WEDDING, at last', 'forewarned of weddings'],
  2.0: ["the bride's mother", 'wedding wedding wedding wedding'],
}


def forward(params, tokens, mask=None):
  return decoder.forward(params, tokens, decoders.CONFIGS[NAME], segments=mask)


def measure(edit, coefficients=(0.0, 1.0, 2.0), texts=TEXTS, **options):
  calls = iter(coefficients)

  def sample(plants):
    assert set(plants) == {SITE}
    return SAMPLED[next(calls)]

  params = decoders.params(NAME)
  return frontier(edit, coefficients, sample, WORDS, texts, forward, params, **options)


def loss_by_hand(added, counted):
  """Mean loss of the predictions (row, position of the token that predicts), one by one."""
  logits = plain.adding(NAME, SITE)(decoders.params(NAME), TEXTS, added)
  log_probs = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
  return -np.mean([log_probs[row, t, TEXTS[row, t + 1]] for row, t in counted])


def test_the_loss_counts_predictions_made_after_the_last_steered_position():
  """An edit of positions 4, 5, 6: the first prediction that counts is that of token 8, made at position 7."""
  v = vector()
  points = measure(Add(SITE, v, where=at(4, 5, 6)), batch=2)
  counted = [(row, t) for row in range(3) for t in range(7, 11)]
  added = np.zeros((3, 12, plain.D), np.float32)
  without = loss_by_hand(added, counted)
  added[:, 4:7] = v
  for point in points:
    expected = loss_by_hand(np.float32(point.coefficient) * added, counted)
    assert point.loss == pytest.approx(expected, abs=1e-5)
    assert point.loss_increase == pytest.approx(expected - without, abs=1e-5)
    assert (point.predictions, point.loss_at) == (12, 'after')
  assert points[0].loss_increase == 0
  assert abs(points[2].loss_increase) > 1e-3


def test_the_loss_under_an_edit_counts_all_predictions():
  v = vector()
  points = measure(Add(SITE, v, where=everywhere), loss_at='under')
  counted = [(row, t) for row in range(3) for t in range(11)]
  expected = loss_by_hand(np.broadcast_to(v, (3, 12, plain.D)), counted)
  assert points[1].loss == pytest.approx(expected, abs=1e-5)
  assert (points[1].predictions, points[1].loss_at) == (33, 'under')


def test_padding_and_prompts_of_texts_are_respected():
  v, lengths = vector(), [12, 7, 9]
  mask = np.arange(12) < np.array(lengths)[:, None]
  point = measure(
    Add(SITE, v, where=generated), mask=mask, prompt_length=np.array([3, 4, 5]), loss_at='under'
  )[1]
  counted = [(row, t) for row, n in enumerate(lengths) for t in range(n - 1)]
  added = np.zeros((3, 12, plain.D), np.float32)
  for row, n in enumerate((3, 4, 5)):
    added[row, n:] = v
  assert point.loss == pytest.approx(loss_by_hand(added, counted), abs=1e-5)
  assert point.predictions == len(counted)


def test_success_is_the_share_of_rollouts_with_a_whole_word():
  points = measure(Add(SITE, vector(), where=first(2)))
  assert [p.success for p in points] == [0.0, 0.5, 1.0]  # not in 'weddings'; in "bride's"
  assert [p.rollouts for p in points] == [2, 2, 2]
  for point in points:
    low, high = wilson(round(2 * point.success), 2)
    assert point.interval == pytest.approx((low, high), abs=1e-9)
  assert points[2].distinct_2 == pytest.approx((1 + 1 / 3) / 2)


def wilson(k, n, z=1.959963984540054):
  """Ends of the interval: the shares p with |k/n - p| = z sqrt(p (1 - p) / n), from the quadratic equation."""
  roots = np.roots([1 + z * z / n, -(2 * k + z * z) / n, (k / n) ** 2])
  return tuple(np.sort(roots.real))


def test_a_sweep_of_coefficients_compiles_nothing_after_its_first():
  edit, params = Add(SITE, vector(), where=first(2)), decoders.params(NAME)
  losses = frontiers.SplicedLoss.of(edit, TEXTS, forward, params)
  found, seen = [losses.measure(0.0)], []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
  found += [losses.measure(c) for c in (1.0, 2.0, 4.0, -3.0)]
  jax.monitoring.clear_event_listeners()
  assert '/jax/core/compile/backend_compile_duration' not in seen
  assert len(set(found)) == 5


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('a b a b a b', 2 / 5),
    ('one two three four', 1.0),
    ('no no no no', 1 / 3),
    ('A a, a!', 1 / 2),
    ('word', math.nan),
    ('', math.nan),
  ],
)
def test_distinct_2_is_the_share_of_different_pairs(text, expected):
  assert rollouts.distinct_2([text]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize('words', [[], '', 'wedding', ['two words'], ['war', ''], ['!'], [3]])
def test_a_vocabulary_that_no_text_can_contain_is_refused(words):
  with pytest.raises(SteeringError):
    rollouts.count_successes(['a wedding'], words)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'edit': Add(SITE, vector(), where=everywhere)}, 'no prediction of text 0 counts'),
    ({'edit': Add(SITE, vector(), where=at(10))}, 'no prediction of text 0 counts'),
    ({'edit': Add(SITE, vector(), where=at(12))}, 'no position 12'),
    ({'edit': Add(SITE, vector(), where=generated)}, 'without the length'),
    ({'loss_at': 'before'}, "loss_at='before'"),
    ({'batch': 0}, 'batch=0'),
    ({'coefficients': []}, 'finite numbers'),
    ({'coefficients': [math.nan]}, 'finite numbers'),
    ({'texts': TEXTS[0]}, r'expected ids \[B, T\]'),
    ({'mask': np.ones((3, 11), bool)}, 'a mask of shape'),
  ],
)
def test_measurements_without_a_meaning_are_refused(options, message):
  given = {'edit': Add(SITE, vector(), where=first(2))} | options
  with pytest.raises(SteeringError, match=message):
    measure(given.pop('edit'), **given)


def test_no_rollouts_are_refused():
  edit, params = Add(SITE, vector(), where=first(2)), decoders.params(NAME)
  with pytest.raises(SteeringError, match='no rollouts at coefficient'):
    frontier(edit, [1.0], lambda plants: [], WORDS, TEXTS, forward, params)
  with pytest.raises(SteeringError, match='not a list of texts'):
    frontier(edit, [1.0], lambda plants: [[1, 2]], WORDS, TEXTS, forward, params)


def points_of(*pairs, loss_at='after'):
  return [
    FrontierPoint(float(c), p, (0.0, 1.0), 10, 1.0, 3 + loss, loss, loss_at, 10)
    for c, (loss, p) in enumerate(pairs)
  ]


def test_methods_are_compared_at_equal_loss_on_lines_between_their_points():
  methods = {
    'rising': points_of((0.0, 0.0), (0.1, 0.2), (0.3, 0.8)),
    'back and forth': points_of((0.0, 0.0), (0.4, 0.4), (0.0, 0.9)),
    'never': points_of((0.0, 0.0), (0.1, 0.5)),
    'at a point': points_of((0.0, 0.0), (0.2, 0.3), (0.2, 0.6)),
  }
  found = success_at_equal_loss(methods, 0.2)
  assert found == pytest.approx(
    {'rising': 0.5, 'back and forth': 0.65, 'never': math.nan, 'at a point': 0.6}, nan_ok=True
  )
  shuffled = {'rising': methods['rising'][::-1]}
  assert success_at_equal_loss(shuffled, 0.2) == pytest.approx({'rising': 0.5})


@pytest.mark.parametrize(
  ('methods', 'loss'),
  [
    ({}, 0.1),
    ({'a': []}, 0.1),
    ({'a': points_of((0.0, 0.0)), 'b': points_of((0.0, 0.0), loss_at='under')}, 0.1),
    ({'a': points_of((0.0, 0.0))}, math.nan),
  ],
)
def test_comparisons_without_a_meaning_are_refused(methods, loss):
  with pytest.raises(SteeringError):
    success_at_equal_loss(methods, loss)
