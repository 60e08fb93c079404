"""Metrics and pairs: against NumPy, with padding, several tokens and prompts that do not match."""

import jax
import numpy as np
import pytest

from mechjax.patching import (
  Pairs,
  PatchingError,
  custom,
  difference,
  kl_divergence,
  log_probability,
  logit_difference,
  loss,
)
from mechjax.patching.metrics import bind

CLEAN = [[5, 8, 2, 7], [5, 9, 2], [1, 6]]
NOISE = [[5, 7, 2, 7], [5, 3, 2], [2, 6]]
PAIRS = Pairs.of(CLEAN, NOISE, pad=30)
B, T, V = 3, 4, 12
LOGITS = np.random.default_rng(0).standard_normal((2, B, T, V)).astype(np.float32)
LAST = [3, 2, 1]


def log_softmax(x):
  x = x.astype(np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


LOG_PROBS = log_softmax(LOGITS)


def test_data_without_an_axis_of_pairs_are_refused_by_name():
  for data in (3, (np.ones(3), np.ones(2))):
    with pytest.raises(PatchingError, match="data of the metric 'own' have the shapes"):
      custom('own', lambda out, _: out[:, -1, 0], data)


def test_pairs_made_by_hand_with_rows_missing_are_refused_by_name():
  short = Pairs(PAIRS.clean[:2], PAIRS.noise[:2], PAIRS.real)
  with pytest.raises(PatchingError, match='share no leading axis of pairs'):
    logit_difference(short, [1, 2, 3], [4, 5, 6])


def close(metric, expected):
  for call in (metric, jax.jit(lambda out: metric(out))):
    np.testing.assert_allclose(call(LOGITS[0]), expected, rtol=1e-5, atol=1e-5)
  some = metric.rows(np.array([2, 0]))
  np.testing.assert_allclose(
    some(LOGITS[0][[2, 0]]), np.take(expected, [2, 0]), rtol=1e-5, atol=1e-5
  )


def test_pairs_are_padded_behind_and_know_what_is_real():
  assert PAIRS.clean.tolist() == [[5, 8, 2, 7], [5, 9, 2, 30], [1, 6, 30, 30]]
  assert PAIRS.real.sum(1).tolist() == [4, 3, 2]
  assert PAIRS.last.tolist() == LAST


def test_the_logit_difference_is_read_at_the_last_real_position():
  expected = [
    LOGITS[0, i, LAST[i], a] - LOGITS[0, i, LAST[i], o]
    for i, a, o in zip(range(3), [3, 4, 5], [6, 7, 8])
  ]
  close(logit_difference(PAIRS, [3, 4, 5], [6, 7, 8]), expected)


def test_positions_may_be_given():
  expected = [LOGITS[0, i, 1, 3] - LOGITS[0, i, 1, 6] for i in range(3)]
  close(logit_difference(PAIRS, [3] * 3, [6] * 3, positions=[1, 1, 1]), expected)


def test_an_answer_of_several_tokens_is_the_sum_of_their_log_probabilities():
  answers = [[3, 4], [5, -1], [6, 7]]
  expected = [
    LOG_PROBS[0, 0, 2, 3] + LOG_PROBS[0, 0, 3, 4],
    LOG_PROBS[0, 1, 2, 5],
    LOG_PROBS[0, 2, 0, 6] + LOG_PROBS[0, 2, 1, 7],
  ]
  close(log_probability(PAIRS, answers), expected)
  other = log_probability(PAIRS, [1, 2, 3])
  close(
    difference('both', log_probability(PAIRS, answers), other),
    np.array(expected) - other(LOGITS[0]),
  )


def test_a_difference_reads_the_positions_of_both_one_after_the_other():
  left = log_probability(PAIRS, [[3, 4], [5, -1], [6, 7]])
  right = logit_difference(PAIRS, [3, 4, 5], [6, 7, 8], positions=[0, 2, 1])
  both = difference('both', left, right)
  assert both.at.tolist() == [[2, 3, 0], [2, 2, 2], [0, 1, 1]]
  expected = left(LOGITS[0]) - right(LOGITS[0])
  close(both, expected)
  read = np.take_along_axis(LOGITS[0], both.at[..., None], 1)
  np.testing.assert_allclose(both.of(read), expected, rtol=1e-5, atol=1e-5)
  everywhere = difference('both', both, loss(PAIRS))  # the loss reads all positions
  assert everywhere.at is None
  close(everywhere, expected - loss(PAIRS)(LOGITS[0]))


def test_the_loss_counts_real_tokens_only():
  expected = [
    -np.mean([LOG_PROBS[0, i, t, row[t + 1]] for t in range(len(row) - 1)])
    for i, row in enumerate(CLEAN)
  ]
  close(loss(PAIRS), expected)


def test_kl_is_from_the_reference_and_zero_at_it():
  expected = [
    (np.exp(LOG_PROBS[1, i, t]) * (LOG_PROBS[1, i, t] - LOG_PROBS[0, i, t])).sum()
    for i, t in enumerate(LAST)
  ]
  close(kl_divergence(PAIRS, LOGITS[1]), expected)
  np.testing.assert_allclose(kl_divergence(PAIRS, LOGITS[0])(LOGITS[0]), 0, atol=1e-6)


def test_a_custom_metric_takes_its_data_along():
  metric = custom(
    'at', lambda out, weights: out[:, 0, 0] * weights, np.array([1, 2, 3], np.float32)
  )
  close(metric, LOGITS[0, :, 0, 0] * [1, 2, 3])


OTHER = Pairs.of([[5, 8, 2, 7], [5, 9, 4], [1, 6]], [[5, 7, 2, 7], [5, 3, 4], [2, 6]])
MADE = {
  'logit difference': lambda pairs: logit_difference(pairs, [3, 4, 5], [6, 7, 8]),
  'log-probability': lambda pairs: log_probability(pairs, [3, 4, 5]),
  'loss': loss,
  'KL': lambda pairs: kl_divergence(pairs, LOGITS[1]),
  'difference': lambda pairs: difference('d', loss(pairs), log_probability(pairs, [3, 4, 5])),
}


@pytest.mark.parametrize('name', MADE)
def test_a_metric_knows_its_pairs(name):
  metric, swap = MADE[name](PAIRS), np.array([2, 1, 0])
  wide = Pairs(PAIRS.clean.astype(np.int64), PAIRS.noise, PAIRS.real)
  swapped = Pairs(PAIRS.noise, PAIRS.clean, PAIRS.real)
  for same in (PAIRS, Pairs.of(CLEAN, NOISE, pad=7), wide, swapped, jax.device_put(PAIRS)):
    assert bind(metric, same).name == metric.name
  bind(metric.rows(swap), PAIRS.rows(swap))
  with pytest.raises(PatchingError, match=r'is of \[3\] pairs, and 1 were given'):
    bind(metric, PAIRS.rows(np.array([2])))
  with pytest.raises(PatchingError, match=r'made for other pairs\n  where: pair 0 and 1 more'):
    bind(metric, PAIRS.rows(swap))
  with pytest.raises(PatchingError, match=r'made for other pairs\n  where: pair 1\n'):
    bind(metric, OTHER)
  with pytest.raises(PatchingError, match='different pairs'):
    difference('both', metric, loss(OTHER))
  with pytest.raises(PatchingError, match=r'of 3 pairs|of shape \(1, 3, 12\)'):
    metric(LOGITS[0, :1])


def test_what_is_no_metric_says_what_is():
  for wrong in (lambda out: out[:, -1, 0], LOGITS, None):
    with pytest.raises(PatchingError, match='not a Metric') as error:
      bind(wrong, PAIRS)
    assert "custom('its name'" in error.value.hint


def test_a_metric_of_ones_own_is_held_to_the_number_of_its_pairs():
  weighted = custom('weighted', lambda out, w: out[:, 0, 0] * w, np.ones(2, np.float32))
  with pytest.raises(PatchingError, match=r'is of \[2\] pairs'):
    bind(weighted, PAIRS)
  total = bind(custom('total', lambda out, _: out.sum()[None]), PAIRS)
  with pytest.raises(PatchingError, match='not one number for each pair'):
    total(LOGITS[0])


@pytest.mark.parametrize(
  ('clean', 'noise', 'message'),
  [
    ([[1, 2, 3]], [[1, 2]], 'pair 0.*|3 and 2 tokens'),
    ([[1, 2], [1, 2, 3]], [[2, 2], [1, 2, 3]], 'prompts are equal'),
    ([[1, 2, 3, 4, 5, 6]], [[1, 9, 2, 3, 4, 5]], r'differ in 5 tokens, but in \d when moved by 1'),
    ([[1, 2]], [[2, 2], [3, 3]], '1 clean and 2 noise'),
    ([], [], 'make no pairs'),
    ([[]], [[]], 'sequence of token ids'),
    ([[1.5]], [[2.5]], 'sequence of token ids'),
  ],
)
def test_prompts_that_do_not_match_are_refused(clean, noise, message):
  with pytest.raises(PatchingError, match=message):
    Pairs.of(clean, noise)


def test_a_mismatch_names_the_pair():
  with pytest.raises(PatchingError, match=r'pair 1: clean \[4, 5\], noise \[4\]'):
    Pairs.of([[1, 2], [4, 5]], [[2, 2], [4]])


def at(positions):
  return logit_difference(PAIRS, [3, 4, 5], [6, 7, 8], positions=positions)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: logit_difference(PAIRS, [[3, 4]] * 3, [1, 2, 3]), 'no logit'),
    (lambda: logit_difference(PAIRS, [3, 4], [1, 2]), 'one for each of 3 pairs'),
    (lambda: logit_difference(PAIRS, [3, 4, -1], [1, 2, 3]), 'token ids'),
    (lambda: logit_difference(PAIRS, [-1] * 3, [1, 2, 3]), r'(3,)(.|\n)*\[-1, -1, -1\]'),
    (lambda: logit_difference(PAIRS, [3.5, 4, 5], [1, 2, 3]), r'float64 of shape \(3,\)'),
    (lambda: logit_difference(CLEAN, [3, 4, 5], [1, 2, 3]), 'pairs must be of the class Pairs'),
    (lambda: loss(CLEAN), 'pairs must be of the class Pairs, got list'),
    (lambda: logit_difference(PAIRS, [3, 4, 5], [6, 4, 5]), r'same token, 4, in pairs \[1, 2\]'),
    (lambda: logit_difference(PAIRS, [3, 4, 5], [6, 7, 8], positions=[-1] * 3), 'not all real'),
    (lambda: logit_difference(PAIRS, [3, 4, 12], [6, 7, 8])(LOGITS[0]), '12 is not a token id'),
    (lambda: log_probability(PAIRS, [[3, -100], [4, 5], [6, 7]]), 'token ids'),
    (lambda: log_probability(PAIRS, [[3, 4, 5], [3, -1, 5], [3, 4, 5]]), 'token ids'),
    (lambda: loss(PAIRS, np.full((B, T), -100)), '-100 is not a token id'),
    (lambda: custom('all', 3), 'function of the metric'),
    (lambda: logit_difference(PAIRS, [3, 4, 5], [1, 2, 3], positions=[3, 3, 3]), 'not all real'),
    (lambda: logit_difference(PAIRS, [3, 4, 5], [1, 2, 3], positions=[3]), 'positions have shape'),
    (lambda: log_probability(PAIRS, [[1, 2, 3]] * 3), 'not all real'),
    (lambda: kl_divergence(PAIRS, LOGITS[0, :2]), 'reference logits'),
    (lambda: kl_divergence(PAIRS, LOGITS[0].tolist()), 'type list'),
    (lambda: kl_divergence(PAIRS, np.zeros((B, T, V), int)), 'type int64'),
    (lambda: kl_divergence(PAIRS, LOGITS[1, :, :, :1])(LOGITS[0]), 'of 12, and the reference'),
    (lambda: at([2.9, 1.2, 1.0]), r'positions must be integers, got float64'),
    (lambda: at([True, False, True]), 'positions must be integers, got bool'),
    (lambda: at([2**32, 0, 0]), '4294967296 is not'),
    (lambda: logit_difference(PAIRS, [2**32 + 1, 2, 3], [4, 5, 6]), '4294967297 is not'),
    (lambda: log_probability(PAIRS, [2**32 + 1, 2, 3]), '4294967297 is not'),
    (lambda: loss(PAIRS, np.ones((B, T))), 'tokens of a loss must be integers'),
    (lambda: loss(PAIRS, np.full((B, T), 2**32 + 1)), '4294967297 is not'),
    (lambda: Pairs.of([[1, 2**32 + 5]], [[1, 3]]), '4294967301 is not'),
    (lambda: Pairs.of([[1, 2]], [[1, 3]], pad=2.7), 'padding must be integers'),
  ],
)
def test_answers_that_do_not_match_are_refused(make, message):
  with pytest.raises(PatchingError, match=message):
    make()
